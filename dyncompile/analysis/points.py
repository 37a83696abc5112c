"""Places where a decision can be taken: values of the trunk that both graphs have.

What runs before a point cannot depend on a decision taken there. So an elastic dim can be decided at a point
only if its first use, in either graph, comes after it.

Rows of a batch part at a point and meet again later, hence every tensor that is alive there must let its rows
be gathered, and no memory that is written later may be read through a view made before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from math import prod

from torch import Tensor, fx

from dyncompile.analysis.dims.algebra import BATCH, elastics
from dyncompile.analysis.dims.call import TensorType, Type, flat_types, shape_of
from dyncompile.analysis.dims.facts import DimFacts
from dyncompile.analysis.flow import Flow, memory_of, tensor, written
from dyncompile.analysis.regions import Regions
from dyncompile.program import MODES, Mode, Program
from dyncompile.torchlib import enter_autocast

Target = Callable[..., object] | str


@dataclass(frozen=True, slots=True)
class Point:
    """A value of the trunk that a decision net can read.

    Attributes:
        name: the node's name in the evaluation graph.
        nodes: the node's name in each graph.
        channels: the axis that holds features; axis 0 is the batch, all others are positions.
        shape: sizes per sample, from axis 1 on.
        branch: name of the residual branch that starts here, empty if none does.
    """

    name: str
    nodes: Mapping[Mode, str]
    channels: int
    shape: tuple[int, ...]
    branch: str


@dataclass(frozen=True, slots=True)
class PointFacts:
    """Places for decisions.

    Attributes:
        points: in order.
        before: elastic name -> how many points come before its first use.
        partners: node of the evaluation graph -> the same node of the training graph.
    """

    points: tuple[Point, ...]
    before: Mapping[str, int]
    partners: Mapping[str, str]


def find_points(
    program: Program,
    dims: DimFacts,
    regions: Regions,
    ignored: Collection[Target],
    counted: Mapping[Mode, Collection[fx.Node]],
) -> PointFacts:
    """The points of a program.

    Nodes whose target is in `ignored` use nothing (what passes inserted); `counted` ones number the rows of
    the batch.
    """
    flows = {mode: Flow.of(program.graphs[mode], ignored) for mode in MODES}
    nodes = program.nodes
    partners = counterparts(program)
    branches = {branch.entry: branch.name for branch in regions.branches}
    spans = {mode: _spans(flows[mode], dims.graphs[mode].types, counted[mode]) for mode in MODES}
    memory = memory_of(nodes["eval"].values(), {})

    def parts(name: str) -> bool:
        own = {"eval": name, "train": partners.get(name, "")}
        places = {m: flows[m].order[nodes[m][own[m]]] for m in MODES if own[m]}
        apart = not any(a <= at < b for m, at in places.items() for a, b in spans[m])
        return apart and not _writes_part(nodes["eval"][name], memory)

    points: list[Point] = []
    for name in _candidates(flows["eval"], nodes["eval"], regions, set(filter(parts, regions.trunk))):
        found = _point(name, partners.get(name), dims, nodes, branches.get(name, ""))
        points += [found] if found else []
    return PointFacts(tuple(points), _before(program, dims, points, ignored), partners)


def _candidates(
    flow: Flow, nodes: Mapping[str, fx.Node], regions: Regions, fit: Collection[str]
) -> Iterator[str]:
    """Trunk nodes that start a branch, that a trunk contraction reads, or behind which several ways work."""
    starts = {branch.entry for branch in regions.branches}
    trunk = [nodes[name] for name in regions.trunk]
    starts |= {source.name for node in trunk if flow.contracts(node) for source in node.all_input_nodes[:1]}
    on_trunk, last = {node for node in trunk if node.name in fit}, ""
    for node in nodes.values():
        if node in on_trunk:
            last = node.name
        elif flow.contracts(node):  # what is not on the trunk lies between two nodes of it
            starts.add(last)
    for node in trunk:
        if node in on_trunk and node.op == "call_function" and node.name in starts:
            yield node.name


def _writes_part(node: fx.Node, memory: Mapping[fx.Node, fx.Node]) -> bool:
    """Whether a node's value is a part of what it changes: decisions read whole values."""
    return any(prod(shape_of(tensor(one))) != prod(shape_of(tensor(memory[one]))) for one in written(node))


def _point(
    name: str,
    partner: str | None,
    dims: DimFacts,
    nodes: Mapping[Mode, Mapping[str, fx.Node]],
    branch: str,
) -> Point | None:
    found = dims.graphs["eval"].types.get(name)
    if partner is None or not isinstance(found, tuple) or len(found) < 2 or found[0] != (BATCH,):
        return None
    if dims.graphs["train"].types.get(partner) != found:
        return None
    value = tensor(nodes["eval"][name])
    if not value.is_floating_point():
        return None
    shape = tuple(int(size) for size in value.shape[1:])
    return Point(name, {"eval": name, "train": partner}, channel_axis(found), shape, branch)


def channel_axis(dims: TensorType) -> int:
    """The axis with elastic dims, else where the layouts [B, C, H, W] and [B, N, C] have it."""
    moving = [axis for axis, dim in enumerate(dims) if elastics(dim)]
    if moving:
        return moving[0]
    return 1 if len(dims) >= 4 else len(dims) - 1


def counterparts(program: Program) -> dict[str, str]:
    """Node of the evaluation graph -> the same node of the training graph.

    Nodes are the same if module call, operator and ordinal agree. Where a module uses an operator more often
    in one mode, its ordinals cannot be matched and it has no counterpart.
    """
    keyed = {mode: _keyed(program.graphs[mode]) for mode in MODES}
    return {
        own: other
        for key, names in keyed["eval"].items()
        if len(names) == len(keyed["train"].get(key, ()))
        for own, other in zip(names, keyed["train"][key], strict=True)
    }


def _keyed(graph: fx.Graph) -> dict[tuple[str, str], list[str]]:
    found: dict[tuple[str, str], list[str]] = {}
    for node in graph.nodes:
        if node.op == "call_function":
            call = next(reversed(node.meta.get("nn_module_stack") or ("",)))
            found.setdefault((call, str(node.target)), []).append(node.name)
    return found


def _spans(flow: Flow, types: Mapping[str, Type], counted: Collection[fx.Node]) -> list[tuple[int, int]]:
    """(first, end) positions between which rows cannot part.

    While a tensor is alive whose rows cannot be gathered, from a value to a later write into its memory, and
    within a region of another precision, which is entered and left once.
    """
    last: dict[fx.Node, int] = {}
    spans: list[tuple[int, int]] = []
    for node, read in flow.operands.items():
        for operand in read:
            last[operand] = flow.order[node]
        spans += [(flow.order[made], flow.order[by]) for made, by in flow.writers[node].items()]
    for node, end in last.items():
        gathers = all(map(gatherable, flat_types(types.get(node.name)))) and node not in counted
        if (node.op == "call_function" and not gathers) or node.target is enter_autocast:
            spans.append((flow.order[node], end))
    return spans


def gatherable(dims: TensorType) -> bool:
    """Whether the rows of a tensor can be gathered: the batch is one factor of one axis, or of none."""
    return [factor for dim in dims for factor in dim].count(BATCH) <= 1


def _before(
    program: Program, dims: DimFacts, points: list[Point], ignored: Collection[Target]
) -> dict[str, int]:
    """Elastic name -> number of points that precede its first use in both graphs."""
    total = dict.fromkeys(dims.elastic, len(points))
    for mode in MODES:
        passed = 0
        waiting = {point.nodes[mode] for point in points}
        seen = set[str]()
        for node in program.graphs[mode].nodes:
            for name in _used(node, dims, mode, ignored) - seen:
                total[name] = min(total[name], passed)
                seen.add(name)
            passed += node.name in waiting
    return total


def _used(node: fx.Node, dims: DimFacts, mode: Mode, ignored: Collection[Target]) -> set[str]:
    """Elastic dims that a call reads or makes."""
    if node.op != "call_function" or node.target in ignored:
        return set()
    names = dims.graphs[mode].elastics
    reads = (read for read in node.all_input_nodes if isinstance(read.meta.get("val"), Tensor))
    return {name for value in (node, *reads) for name in names.get(value.name, ())}
