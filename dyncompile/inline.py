"""Copying the captured graph of a small network into the graphs of a program.

What a pass adds (candidate branches, predictors, heads) is written as an ordinary `nn.Module`, captured like
any source, and becomes nodes among the others: typed, priced, narrowed and skipped by the same rules.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from dyncompile.capture import capture
from dyncompile.program import POLICY, Mode, Program, flat_inputs
from dyncompile.state import CONSTANTS, STATE_PREFIX
from dyncompile.torchlib import fake_copy, is_symbolic, items, map_nodes

_CONSTANT = f"{CONSTANTS}."


def capture_like(module: nn.Module, values: Sequence[Tensor], home: Tensor) -> Program:
    """The program of a copy of `module` on inputs with the shapes of `values`, on the device of `home`.

    Parameters take the dtype of `home`. A symbolic leading size is the batch.

    Raises:
        CaptureError: the module cannot be traced on these shapes.
    """
    own = copy.deepcopy(module).to(home.device)
    own = own.to(home.dtype) if any(p.is_floating_point() for p in own.parameters()) else own
    return capture(own, tuple(_example(value, home.device) for value in values), whole=False)


class Alternatives(nn.ModuleDict):
    """Networks that read the same value: one capture takes them all."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """What each of them gives."""
        return tuple(one(x) for one in self.values())


def state_name(prefix: str, name: str) -> str:
    """Where state of an inserted network lies: ``dyn.<prefix>.<name>``; its constants beside all others."""
    if name.startswith(_CONSTANT):
        return f"{_CONSTANT}{prefix.replace('.', '_')}_{name.removeprefix(_CONSTANT)}"
    return f"{STATE_PREFIX}.{prefix}.{name}"


def copy_nodes(
    source: fx.Graph,
    graph: fx.Graph,
    inputs: Sequence[fx.Node],
    prefix: str,
    tensor: Callable[[str], Tensor],
    after: fx.Node | None = None,
) -> tuple[fx.Node, ...]:
    """Copy `source` into `graph` right after the last of `inputs`, which it reads; its flat outputs.

    Args:
        source: a captured graph.
        graph: where the copy goes.
        inputs: values for the source's inputs, in their order.
        prefix: of the state that the copy reads, see `state_name`.
        tensor: state by name.
        after: a node that the copy stands behind as well.
    """
    like = next(value for node in inputs if isinstance(value := node.meta["val"], Tensor))
    waiting, env = iter(inputs), dict[fx.Node, Any]()
    last = max(inputs) if after is None else max(*inputs, after)
    for node in source.nodes:
        if node.op == "placeholder":
            env[node] = None if node.target == POLICY else next(waiting)
            continue
        if node.op == "output":
            return tuple(env[one] for one in items(node.args[0]))
        with graph.inserting_after(last):
            last = env[node] = _copied(node, graph, env, prefix)
        if last.op == "get_attr":
            last.meta["val"] = tensor(str(last.target))
        else:
            last.meta["val"] = fake_copy(last.target, last.args, like, last.kwargs)
    raise AssertionError("a graph without an output")


def _copied(node: fx.Node, graph: fx.Graph, env: dict[fx.Node, Any], prefix: str) -> fx.Node:
    if node.op == "get_attr":
        return graph.get_attr(state_name(prefix, str(node.target)))
    args, kwargs = (map_nodes(part, env.__getitem__) for part in (node.args, node.kwargs))
    new = graph.call_function(node.target, args, kwargs)  # pyright: ignore
    stack = node.meta.get("nn_module_stack") or {"": ("", nn.Module)}
    # Module calls are told apart by these keys: those of an inserted network must meet no other's.
    new.meta["nn_module_stack"] = {f"{STATE_PREFIX}.{prefix}@{key}": call for key, call in stack.items()}
    if "stack_trace" in node.meta:
        new.meta["stack_trace"] = node.meta["stack_trace"]
    return new


def _example(value: Tensor, device: torch.device) -> Tensor:
    """Zeros in the shape of an abstract value; two samples are the least that show the batch."""
    leading = value.shape[0] if value.dim() else 1
    least = [2] if is_symbolic(leading) else []
    shape = [*least, *(int(size) for size in value.shape[len(least) :])]
    return torch.zeros(shape, dtype=value.dtype, device=device)


def tensor_inputs(graph: fx.Graph) -> list[fx.Node]:
    """The inputs of a graph that hold tensors, in order."""
    return [node for node in flat_inputs(graph) if isinstance(node.meta.get("val"), Tensor)]


Value = Mapping[Mode, fx.Node]
"""One value, by its node in each graph."""


def values(outputs: Mapping[Mode, Sequence[fx.Node]]) -> list[Value]:
    """What an inserted network gives, value by value."""
    count = len(next(iter(outputs.values())))
    return [{mode: nodes[at] for mode, nodes in outputs.items()} for at in range(count)]


def reading(*given: Value) -> dict[Mode, list[fx.Node]]:
    """Values as the inputs of a network, or what a decision reads."""
    return {mode: [value[mode] for value in given] for mode in given[0]}
