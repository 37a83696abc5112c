"""Specialize: fix the route, evaluate everything that depends on it alone, and drop what is then dead.

The result is a plain static `fx.GraphModule`: narrowed parameters under their own names, integer literals, no
decision left. `torch.compile`, `torch.export` and ONNX take it.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from dyncompile.capture.clean import POLICY, put_state
from dyncompile.deploy.dead import drop_dead_channels
from dyncompile.errors import RouteError
from dyncompile.policies import Forced
from dyncompile.program import Program, Route, state_tensors
from dyncompile.runtime import ops
from dyncompile.runtime.model import DynamicModel
from dyncompile.runtime.steering import Group, group_rows, plan_route

_ARITHMETIC = (operator.mul, operator.add, operator.sub, operator.floordiv)


def specialize(dyn: DynamicModel, route: Route) -> fx.GraphModule:
    """The static network that `route` stands for, in the model's present mode (training or evaluation).

    Its parameters are copies: training it leaves `dyn` as it is. The call takes the model's tensor inputs by
    position, in the captured order, and returns the model's output structure.

    Args:
        dyn: any dynamic model.
        route: one row per choice (or equal rows); choices that it leaves out run at full capacity.

    Raises:
        RouteError: rows that differ: a static network is one route.
    """
    group = _single(dyn.program, route)
    source = dyn.program.graphs[dyn.mode]
    graph, state = _fold(source, group, state_tensors(dyn.program.state))
    owner = nn.Module()
    kept = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    tied: dict[int, Tensor] = {}
    for name in state:
        if name in kept:
            put_state(owner, name, _own_copy(state[name], tied))
    drop_dead_channels(graph, owner)
    graph.set_codegen(_codegen(dyn.program, graph))
    module = fx.GraphModule(owner, graph, f"{type(dyn).__name__}Static")
    return module.train(dyn.training)


def _single(program: Program, route: Route) -> Group:
    rows = max((value.shape[0] for value in route.values()), default=1)
    groups = group_rows(plan_route(Forced(route), program.choices, rows), rows)
    unknown = sorted(set(route) - set(program.choices))
    if unknown:
        raise RouteError(f"no choice is named {unknown}", fix=f"choices are: {sorted(program.choices)}")
    if len(groups) != 1:
        raise RouteError(
            f"the route holds {len(groups)} different rows, a static network has one",
            fix="specialize once per distinct row: route[name][i : i + 1]",
        )
    return groups[0]


def _fold(source: fx.Graph, group: Group, tensors: Mapping[str, Tensor]) -> tuple[fx.Graph, dict[str, Tensor]]:
    """The graph with everything evaluated that only the decisions and the state determine, and its state."""
    graph = fx.Graph()
    known: dict[fx.Node, Any] = {}
    names: dict[fx.Node, str] = {}
    env: dict[fx.Node, fx.Node] = {}
    state: dict[str, Tensor] = {}

    def place(node: fx.Node) -> Any:
        """A node's value as an argument of a static node: a literal, or a read of (narrowed) state."""
        if node not in env and isinstance(known.get(node), Tensor):
            env[node] = _read(graph, names[node], node)
            state[names[node]] = known[node]
        return env[node] if node in env else known[node]

    for node in source.nodes:
        if node.op == "placeholder" and node.target == POLICY:
            known[node] = group
        elif node.op == "get_attr":
            known[node], names[node] = tensors[str(node.target)], str(node.target)
        elif _is_foldable(node, known):
            known[node] = _evaluate(node, known)
            _name_result(node, names)
        elif node.target is ops.put:
            continue
        else:
            env[node] = graph.node_copy(node, place)
            env[node].meta = dict(node.meta)
    graph.eliminate_dead_code()
    graph.lint()
    return graph, state


def _read(graph: fx.Graph, name: str, node: fx.Node) -> fx.Node:
    first = next((n for n in graph.nodes if n.op != "placeholder"), None)
    with graph.inserting_before(first):
        read = graph.create_node("get_attr", name)
    read.meta = {key: value for key, value in node.meta.items() if key != "val"}
    return read


def _is_foldable(node: fx.Node, known: Mapping[fx.Node, Any]) -> bool:
    if node.target not in ops.FOLDABLE and node.target not in _ARITHMETIC:
        return False
    return all(operand in known for operand in node.all_input_nodes)


def _evaluate(node: fx.Node, known: Mapping[fx.Node, Any]) -> Any:
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: known[n])
    assert callable(node.target)
    with torch.no_grad():
        return node.target(*args, **kwargs)


def _name_result(node: fx.Node, names: dict[fx.Node, str]) -> None:
    """A narrowed or picked tensor goes by the name of the source's tensor."""
    named = [operand for operand in node.all_input_nodes if operand in names]
    if named:
        own = [n for n in named if not names[n].startswith("dyn.")]
        names[node] = names[(own or named)[0]]


def _own_copy(value: Tensor, tied: dict[int, Tensor]) -> Tensor:
    """A contiguous copy; state that was one tensor stays one tensor."""
    if id(value) not in tied:
        copy = value.detach().clone(memory_format=torch.contiguous_format)
        tied[id(value)] = nn.Parameter(copy, value.requires_grad) if _is_parameter(value) else copy
    return tied[id(value)]


def _is_parameter(value: Tensor) -> bool:
    return isinstance(value, nn.Parameter) or (value._base is not None and isinstance(value._base, nn.Parameter))


def _codegen(program: Program, graph: fx.Graph) -> Any:
    return graph._codegen
