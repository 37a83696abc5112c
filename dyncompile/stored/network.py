"""The captured network of a program, before any pass: both graphs, what they read, how they are called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from dyncompile.errors import CheckpointError
from dyncompile.program import MODES, POLICY, Mode, Program
from dyncompile.signature import Leaf, Signature
from dyncompile.state import STATE_PREFIX, put_state, state_tensors
from dyncompile.stored.calling import describe_call, restore_signature
from dyncompile.stored.targets import check_call, decode_target, encode_target
from dyncompile.stored.values import decode, encode
from dyncompile.torchlib import (
    is_symbolic,
    map_nodes,
    own_buffers,
    own_modules,
    own_parameters,
    tensors_in,
    transient_buffers,
)

_CALL, _READ, _INPUT, _OUTPUT = "call_function", "get_attr", "placeholder", "output"
_BATCH = 4099
"""What the symbolic batch is an example of: a prime, so that no size equals it by chance and fixes it."""
_LARGEST = 1 << 24
"""Sizes of a graph's values stay below: analysis lists the positions of dims, which takes memory."""


# -- to data ----------------------------------------------------------------------------------------


def describe_network(program: Program) -> dict[str, Any]:
    """JSON of the network that `program` was made from, without the values of its state.

    Raises:
        ValueError: something in it has no form as data: an operator that is not on the list, an output of an
            unknown class.
    """
    graphs = program.origin or program.graphs
    return {
        "graphs": {mode: [_describe_node(node) for node in graphs[mode].nodes] for mode in MODES},
        "state": [_describe_entry(entry) for entry in _source_state(program)],
        "call": describe_call(program.signature),
        "notes": list(program.notes),
    }


def source_constants(program: Program) -> dict[str, Tensor]:
    """State of the source that its state dict leaves out, each tensor once."""
    entries = [entry for entry in _source_state(program) if not entry.saved and entry.tied_to is None]
    return {entry.name: entry.tensor.detach().cpu().contiguous() for entry in entries}


def _checked(value: Any) -> Any:
    """A node's value if no size of it is absurd. Raises ValueError."""
    for tensor in tensors_in(value):
        if any(not is_symbolic(n) and n >= _LARGEST for n in tensor.shape):
            raise ValueError(f"a value has the shape {list(tensor.shape)}")
    return value


def _describe_node(node: fx.Node) -> dict[str, Any]:
    _checked(node.meta.get("val"))
    described: dict[str, Any] = {"op": node.op, "name": node.name}
    if node.op == _CALL:
        check_call(node.target, node.args)
        described["target"] = encode_target(node.target)
        described["args"] = [encode(value) for value in node.args]
        described["kwargs"] = {name: encode(value) for name, value in node.kwargs.items()}
        stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
        described["modules"] = [[key, call[0]] for key, call in stack.items()]
    elif node.op == _OUTPUT:
        described["args"] = [encode(value) for value in node.args]
    else:
        described["target"] = str(node.target)
    return described


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    tensor: Tensor
    saved: bool
    tied_to: str | None


def _source_state(program: Program) -> Iterator[_Entry]:
    """Everything that is not a pass's, in the order of the module tree."""
    graphs = program.origin or program.graphs
    read = {str(node.target) for graph in graphs.values() for node in graph.nodes if node.op == _READ}
    first: dict[int, str] = {}
    for name, tensor, saved in _walk(program.state, ""):
        if not name.startswith(f"{STATE_PREFIX}.") or name in read:
            known = first.setdefault(id(tensor), name)
            yield _Entry(name, tensor, saved, None if known == name else known)


def _walk(module: nn.Module, lead: str) -> Iterator[tuple[str, Tensor, bool]]:
    for name, parameter in own_parameters(module).items():
        if parameter is not None:
            yield lead + name, parameter, True
    for name, buffer in own_buffers(module).items():
        if buffer is not None:
            yield lead + name, buffer, name not in transient_buffers(module)
    for name, child in own_modules(module).items():
        if child is not None:
            yield from _walk(child, f"{lead}{name}.")


def _describe_entry(entry: _Entry) -> dict[str, Any]:
    described: dict[str, Any] = {"name": entry.name, "saved": entry.saved}
    if entry.tied_to is not None:
        described["tied_to"] = entry.tied_to
    if isinstance(entry.tensor, nn.Parameter):
        described["trainable"] = entry.tensor.requires_grad
    return described


# -- from data --------------------------------------------------------------------------------------


def restore_network(
    described: Mapping[str, Any], inputs: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Program:
    """The captured program that `describe_network` described.

    Args:
        described: from JSON.
        inputs: the description of the inputs beside it.
        tensors: the state's values by name, constants included; they become the program's own.

    Raises:
        CheckpointError: the description is damaged, or calls what it may not.
    """
    try:
        signature = restore_signature(inputs, described["call"])
        state = _restore_state(described["state"], tensors)
        graphs: dict[Mode, fx.Graph] = {
            mode: _restore_graph(described["graphs"][mode], state, signature) for mode in MODES
        }
        notes = tuple(str(note) for note in described["notes"])
        return Program(graphs=graphs, state=state, signature=signature, notes=notes)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged description can make torch's shape functions fail in any way
        raise CheckpointError(f"the stored graph is damaged: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text[:200]}"


def _restore_state(entries: Any, tensors: Mapping[str, Tensor]) -> nn.Module:
    state, made = nn.Module(), dict[str, Tensor]()
    for entry in entries:
        name, tied_to = str(entry["name"]), entry.get("tied_to")
        if tied_to is not None:
            value = made[tied_to]
        elif "trainable" in entry:
            value = nn.Parameter(tensors[name], requires_grad=entry["trainable"] is True)
        else:
            value = tensors[name]
        made[name] = value
        put_state(state, name, value, persistent=entry["saved"] is True)
    return state


def _restore_graph(nodes: Any, state: nn.Module, signature: Signature) -> fx.Graph:
    """The graph with its metadata computed on abstract values: nothing runs, nothing is allocated."""
    graph, env = fx.Graph(), dict[str, fx.Node]()
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=False)
    inputs, held = iter(signature.leaves), state_tensors(state)
    fakes: dict[int, Any] = {}
    for one in nodes:
        op, name = one["op"], str(one["name"])
        if op == _INPUT:
            env[name] = graph.create_node(op, str(one["target"]), name=name)
            env[name].meta["val"] = None if one["target"] == POLICY else _fake_input(next(inputs), mode)
        elif op == _READ:
            tensor = held[one["target"]]
            env[name] = graph.create_node(op, str(one["target"]), name=name)
            fake = fakes.setdefault(id(tensor), mode.from_tensor(tensor, static_shapes=True))
            env[name].meta["val"] = fake
        elif op == _CALL:
            env[name] = _restore_call(graph, one, env, mode)
        elif op == _OUTPUT:
            graph.output(*(decode(value, env.__getitem__) for value in one["args"]))
        else:
            raise ValueError(f"a node of kind {op!r}")
        if op != _OUTPUT and env[name].name != name:
            raise ValueError(f"the name {name!r} is given twice or is no identifier")
    graph.lint()
    return graph


def _restore_call(
    graph: fx.Graph, one: Mapping[str, Any], env: Mapping[str, fx.Node], mode: FakeTensorMode
) -> fx.Node:
    target = decode_target(one["target"])
    args = tuple(decode(value, env.__getitem__) for value in one["args"])
    kwargs = {str(name): decode(value, env.__getitem__) for name, value in one["kwargs"].items()}
    check_call(target, args)
    node = graph.create_node(_CALL, target, args, kwargs, name=str(one["name"]))
    node.meta["nn_module_stack"] = {str(key): (str(path), nn.Module) for key, path in one["modules"]}
    known_args, known = map_nodes((args, kwargs), lambda operand: operand.meta["val"])
    with mode, torch.no_grad(), enable_python_dispatcher():  # its decompositions keep sizes symbolic
        node.meta["val"] = _checked(target(*known_args, **known))
    return node


def _fake_input(leaf: Leaf, mode: FakeTensorMode) -> Any:
    """An abstract tensor whose batch is a symbol; a constant as it is."""
    if leaf.shape is None:
        return leaf.constant
    sizes = [_BATCH if n is None else n for n in leaf.shape]
    moves = [DimDynamic.DYNAMIC if n is None else DimDynamic.STATIC for n in leaf.shape]
    example = torch.zeros(1, dtype=leaf.dtype).expand(sizes)
    contexts: Any = StatelessSymbolicContext
    return mode.from_tensor(example, symbolic_context=contexts(dynamic_sizes=moves))
