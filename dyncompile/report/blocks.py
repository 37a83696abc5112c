"""A captured graph as a list of blocks: residual branches, and what lies between them, by module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from torch import fx

from dyncompile.analysis.facts import Facts
from dyncompile.analysis.flow import CONTRACTIONS, Flow, op_name, tensor
from dyncompile.torchlib import by_name, is_symbolic

TIMES = "\u00d7"
"""The sign between sizes."""
_MANY = 36
"""Without branches, modules are taken together by their path until there are no more blocks than this."""
_DEEP = 12


@dataclass
class Unit:
    """The nodes of one block, in order.

    Attributes:
        name: module path, or the branch's name.
        branch: whether it is a residual branch that no other holds.
        nodes: what runs for it.
        past: what runs on the way past a branch, empty for the identity.
        end: the node whose value comes out.
    """

    name: str
    branch: bool = False
    nodes: list[fx.Node] = field(default_factory=list[fx.Node])
    past: list[fx.Node] = field(default_factory=list[fx.Node])
    end: fx.Node | None = None


def units_of(graph: fx.Graph, flow: Flow, facts: Facts) -> list[Unit]:
    """All blocks with a contraction or a parameter, in the order of what they compute."""
    data = [node for node in graph.nodes if node in flow.sources and node.op == "call_function"]
    branches = _outermost(graph, facts)
    inside = {node: unit for unit in branches for node in (*unit.nodes, *unit.past)}
    depth = max((unit.name.partition("#")[0].count(".") + 1 for unit in branches), default=_DEEP)
    found = _merged(_runs(data, inside, depth), flow)
    while not branches and len(found) > _MANY and depth > 1:
        depth -= 1
        found = _merged(_runs(data, inside, depth), flow)
    return [_finished(unit, flow) for unit in found]


def _outermost(graph: fx.Graph, facts: Facts) -> list[Unit]:
    nodes = by_name(graph)
    held = {name for one in facts.regions.branches for name in (*one.body, *one.shortcut)}
    return [
        Unit(one.name, True, [nodes[n] for n in one.body], [nodes[n] for n in one.shortcut], nodes[one.exit])
        for one in facts.regions.branches
        if one.exit not in held
    ]


def _runs(data: Iterable[fx.Node], inside: Mapping[fx.Node, Unit], depth: int) -> list[Unit]:
    """Branches, and runs of other nodes with the same module path up to `depth`."""
    units: list[Unit] = []
    for node in data:
        unit = inside.get(node)
        if unit is not None:
            if unit not in units:
                units.append(unit)
            continue
        path = ".".join(module_path(node).split(".")[:depth])
        if not units or units[-1].branch or units[-1].name != path:
            units.append(Unit(path))
        units[-1].nodes.append(node)
    return units


def _merged(units: Sequence[Unit], flow: Flow) -> list[Unit]:
    """What contracts nothing joins what it follows; after a branch, what comes next, or it is left out."""
    kept: list[Unit] = []
    waiting: list[fx.Node] = []
    for unit in units:
        if unit.branch or flow.contractions(unit.nodes):
            if not unit.branch:
                unit.nodes = [*waiting, *unit.nodes]
            waiting = []
            kept.append(unit)
        elif kept and not kept[-1].branch:
            kept[-1].nodes += unit.nodes
        else:
            waiting += unit.nodes
    if any(state_read(node, flow) for node in waiting):
        kept.append(Unit(module_path(waiting[-1]), nodes=waiting))
    return kept


def _finished(unit: Unit, flow: Flow) -> Unit:
    """Without branch: the full module path where there is a single contraction, and the last node."""
    if unit.branch:
        return unit
    heavy = [node for node in unit.nodes if flow.contracts(node)]
    if len(heavy) == 1:
        unit.name = module_path(heavy[0])
    unit.name, unit.end = unit.name or "network", unit.nodes[-1]
    return unit


def module_path(node: fx.Node) -> str:
    """The module that called, by its path; empty for the network itself."""
    stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
    return str([*stack.values()][-1][0]) if stack else ""


def state_read(node: fx.Node, flow: Flow) -> list[str]:
    """Names of parameters and buffers that a node reads, also where something is computed of them first."""
    found: dict[str, None] = {}
    todo, seen = [node], {node}
    while todo:
        for read in todo.pop().all_input_nodes:
            if read in seen or read in flow.sources:
                continue
            seen.add(read)
            if read.op == "get_attr":
                found[str(read.target)] = None
            todo.append(read)
    return [*found]


# -- words ------------------------------------------------------------------------------------------


def operations(nodes: Iterable[fx.Node], flow: Flow) -> tuple[str, ...]:
    """The contractions in words, runs of equal ones once: ``3 x 3 64 (2)``."""
    words = [_operation(node) for node in nodes if node in flow.sources and op_name(node) in CONTRACTIONS]
    return tuple(f"{word} ({TIMES}{n})" if n > 1 else word for word, n in _counted(words))


def _counted(words: Iterable[str]) -> Iterator[tuple[str, int]]:
    for word, same in groupby(words):
        yield word, len(list(same))


def _operation(node: fx.Node) -> str:
    """Kernel and channels of a convolution, features of a linear layer, else the operator's name."""
    name = op_name(node)
    if name == "scaled_dot_product_attention":
        return "attention"
    weight = node.args[1] if len(node.args) > 1 else None
    if not isinstance(weight, fx.Node):
        return name
    shape = [int(n) for n in tensor(weight).shape] if weight.op == "get_attr" else []
    if name == "linear" and len(shape) == 2:
        return f"{shape[1]}→{shape[0]}"
    if name.startswith("conv") and len(shape) > 2:
        kernel, groups = TIMES.join(map(str, shape[2:])), node.args[6] if len(node.args) > 6 else 1
        grouped = "" if groups == 1 else "depthwise " if groups == shape[0] else f"{groups} groups "
        return f"{grouped}{kernel} {shape[0]}"
    return name


def output_shape(node: fx.Node) -> tuple[int, ...]:
    """Sizes per sample, without the batch in front."""
    return tuple(int(n) for n in tensor(node).shape[1:] if not is_symbolic(n))
