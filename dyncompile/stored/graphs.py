"""Graphs as data, and back: nothing runs and nothing is allocated when they are restored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from dyncompile.program import MODES, POLICY, Mode
from dyncompile.signature import Leaf, Signature
from dyncompile.state import state_tensors
from dyncompile.stored.targets import check_call, decode_target, encode_target
from dyncompile.stored.values import decode, encode
from dyncompile.torchlib import is_symbolic, map_nodes, tensors_in

_CALL, _READ, _INPUT, _OUTPUT = "call_function", "get_attr", "placeholder", "output"
_BATCH = 4099
"""What the symbolic batch is an example of: a prime, so that no size equals it by chance and fixes it."""
_LARGEST = 1 << 24
"""Sizes of a graph's values stay below: analysis lists the positions of dims, which takes memory."""


def describe_graphs(graphs: Mapping[Mode, fx.Graph]) -> dict[str, Any]:
    """JSON of both graphs. Raises ValueError where something in them has no form as data."""
    return {mode: [_describe_node(node) for node in graphs[mode].nodes] for mode in MODES}


def restore_graphs(
    described: Mapping[str, Any], state: nn.Module, signature: Signature
) -> dict[Mode, fx.Graph]:
    """Both graphs over a state; a damaged description raises whatever torch's shape functions say of it."""
    return {mode: _restore_graph(described[mode], state, signature) for mode in MODES}


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
