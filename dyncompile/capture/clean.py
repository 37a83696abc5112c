"""From an exported module to a plain graph.

State by name, no guards, no wrapped regions, no baked devices.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from dyncompile.capture.conversions import CALL
from dyncompile.capture.literals import follow_device_and_dtype
from dyncompile.errors import CaptureError
from dyncompile.program import POLICY, source_line
from dyncompile.state import CONSTANTS, adopt_state, holds, put_state, state_tensors
from dyncompile.torchlib import (
    draws_random_numbers,
    enter_autocast,
    exit_autocast,
    is_several,
    items,
    map_nodes,
    schema_of,
)

_DROPPED = (
    "_assert_tensor_metadata",
    "_assert_scalar",
    "sym_constrain_range",
    "sym_constrain_range_for_size",
)
_KEPT_META = ("val", "nn_module_stack", "stack_trace")


def _kept_meta(node: fx.Node) -> dict[str, Any]:
    kept = {key: node.meta[key] for key in _KEPT_META if key in node.meta}
    noted: dict[str, Any] = node.meta.get("custom") or {}
    return {**kept, CALL: noted[CALL]} if CALL in noted else kept


_REGIONS = ("wrap_with_set_grad_enabled", "wrap_with_autocast")


def clean_graph(module: fx.GraphModule, state: nn.Module, owned: nn.Module) -> fx.Graph:
    """A graph with the inputs (policy, *flat inputs) whose `get_attr` targets are names in `state`.

    `state` gains what it lacks: the source's parameters and buffers under their names, captured constants as
    non-persistent buffers under ``dyn.constants``.
    """
    adopt_state(state, owned)
    cleaner = _Cleaner(module, state)
    cleaner.run()
    cleaner.graph.eliminate_dead_code(_has_effect)
    follow_device_and_dtype(cleaner.graph, state)
    return cleaner.graph


def _has_effect(node: fx.Node) -> bool:
    """Nodes that must stay though nobody reads them: in-place updates, mode switches, inputs."""
    if node.op in ("placeholder", "output"):
        return True
    schema = schema_of(node.target)
    if schema is not None and (schema.is_mutable or draws_random_numbers(node.target)):
        return True  # an unused draw still advances the generator, as it does in eager
    return node.target in (enter_autocast, exit_autocast)


def _operator_name(node: fx.Node) -> str:
    return getattr(node.target, "__name__", "").partition(".")[0]


def _written(node: fx.Node) -> Any:
    """The argument that an operator writes into and returns; None where it writes into nothing."""
    schema = schema_of(node.target)
    for at, argument in enumerate(schema.arguments if schema is not None and schema.is_mutable else ()):
        if argument.alias_info is not None and argument.alias_info.is_write:
            return node.kwargs.get(argument.name, node.args[at] if at < len(node.args) else None)
    return None


class _Cleaner:
    """Copies an exported graph node by node; `graph` is the result."""

    def __init__(self, module: fx.GraphModule, state: nn.Module) -> None:
        self._module, self._state = module, state
        self._records = True
        self._cut_off: set[fx.Node] = set()
        self.graph = fx.Graph()

    def run(self) -> None:
        """Copy all nodes, inputs first."""
        env: dict[fx.Node, Any] = {}
        self.graph.placeholder(POLICY)
        nodes: Sequence[fx.Node] = list(self._module.graph.nodes)
        for node in nodes:
            if node.op == "placeholder":
                env[node] = self._copied(node, env.__getitem__)
                if node.target == POLICY:  # an argument of the source's by that name
                    env[node].target = env[node].name
        for node in nodes:
            if node.op == "output":
                self.graph.output(tuple(items(map_nodes(node.args[0], env.__getitem__))))
            elif node.op == "get_attr":
                self._read(node, env)
            elif node.op == "call_function":
                self._call(node, env, self._module)

    def _copied(self, node: fx.Node, env: Callable[[fx.Node], Any]) -> fx.Node:
        new = self.graph.node_copy(node, env)
        new.meta = _kept_meta(node)
        return new

    def _read(self, node: fx.Node, env: dict[fx.Node, Any]) -> None:
        """A read of state; what is not the source's own becomes a constant.

        Sub-graphs are read where they run.
        """
        target = str(node.target)
        value: Any = operator.attrgetter(target)(self._module)
        if isinstance(value, fx.GraphModule):
            return
        if not holds(self._state, target):
            target = f"{CONSTANTS}.{target.replace('.', '_')}"
            put_state(self._state, target, value, persistent=False)
        env[node] = self.graph.create_node("get_attr", target, name=node.name)
        env[node].meta = _kept_meta(node)

    def _call(self, node: fx.Node, env: dict[fx.Node, Any], module: fx.GraphModule) -> None:
        if _operator_name(node) in _DROPPED:
            return
        if _operator_name(node).startswith("wrap_with_"):
            env[node] = self._inlined(node, env, module)
        elif node.target is operator.getitem and is_several(map_nodes(node.args[0], env.__getitem__)):
            env[node] = items(map_nodes(node.args[0], env.__getitem__))[operator.index(node.args[1])]  # pyright: ignore
        elif node.target is torch.ops.aten.alias.default:  # most are made by `observed_dtypes`
            env[node] = map_nodes(node.args[0], env.__getitem__)
        elif not self._records and _written(node) is not None:
            env[node] = self._copied(node, lambda n: self._apart(env[n]))
        else:
            env[node] = self._copied(node, env.__getitem__)

    def _inlined(self, node: fx.Node, env: dict[fx.Node, Any], module: fx.GraphModule) -> list[Any]:
        """A wrapped region as plain nodes: autocast is entered and left; for no_grad see `_switched`."""
        name, arguments = _operator_name(node), list(node.args)
        if name not in _REGIONS:
            raise CaptureError(f"a region of kind {name} cannot be captured", where=source_line(node))
        reads = (i for i, a in enumerate(arguments) if isinstance(a, fx.Node) and a not in env)
        at = next(reads)
        region: Any = operator.attrgetter(str(getattr(arguments[at], "target", "")))(module)
        inputs = [map_nodes(a, env.__getitem__) for a in arguments[at + 1 :]]
        if name == "wrap_with_autocast":
            scope = self.graph.call_function(enter_autocast, tuple(arguments[:at]))
            outputs = self._region(region, inputs)
            self.graph.call_function(exit_autocast, (scope,))
            return outputs
        return self._switched(region, inputs, records=bool(arguments[0]))

    def _switched(self, region: fx.GraphModule, inputs: list[Any], *, records: bool) -> list[Any]:
        """A region that records gradients or does not: without, results and what is written come apart.

        What is only read stays as it is, so that a weight is known by its name.
        """
        before, self._records = self._records, records
        outputs = self._region(region, inputs)
        self._records = before
        return outputs if records else [self._result(out, inputs) for out in outputs]

    def _result(self, value: Any, inputs: list[Any]) -> Any:
        """A result of a region without gradients; an input that was written into is still what it was."""
        origin = value
        while isinstance(origin, fx.Node) and origin not in inputs:
            into = origin.args[0] if origin in self._cut_off else _written(origin)
            if into is None:
                return self._detached(value)
            origin = into
        return origin if isinstance(origin, fx.Node) and self._learns(origin) else self._detached(value)

    def _learns(self, node: fx.Node) -> bool:
        """Whether gradients may reach a value: not a buffer, nor a frozen parameter."""
        return node.op != "get_attr" or state_tensors(self._state)[str(node.target)].requires_grad

    def _apart(self, value: Any) -> Any:
        """What an operation that writes is given without gradients: integers have none."""
        known = value.meta.get("val") if isinstance(value, fx.Node) else None
        if not isinstance(known, Tensor) or not (known.is_floating_point() or known.is_complex()):
            return value
        new = self._detached(value)
        self._cut_off.add(new)
        return new

    def _region(self, region: fx.GraphModule, inputs: list[Any]) -> list[Any]:
        env: dict[fx.Node, Any] = {}
        pending = iter(inputs)
        for node in region.graph.nodes:
            if node.op == "placeholder":
                env[node] = next(pending)
            elif node.op == "call_function":
                self._call(node, env, region)
            elif node.op == "output":
                return items(map_nodes(node.args[0], env.__getitem__))
        raise AssertionError("a graph without an output")

    def _detached(self, value: Any) -> Any:
        if not isinstance(value, fx.Node) or not isinstance(value.meta.get("val"), Tensor):
            return value
        new = self.graph.call_function(torch.ops.aten.detach.default, (value,))
        new.meta = dict(value.meta)
        return new
