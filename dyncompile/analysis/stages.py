"""Stages of a network: runs of its trunk at one resolution."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby

from torch import fx

from dyncompile.analysis.flow import Flow
from dyncompile.analysis.regions import Regions


def find_stages(
    graph: fx.Graph, flow: Flow, regions: Regions, resolution: Mapping[str, int]
) -> dict[str, int]:
    """Stage of every node: a stage is a run of the trunk at one resolution.

    `resolution` gives the number of positions of a node: the product of the sizes that are neither batch nor
    channels, 1 for pooled values. A trunk node that it lacks has that of the trunk node before. From the runs
    of equal resolution along the trunk, stages come by these rules, in this order:

    1. A run without a contraction, in its nodes or in the regions between them, goes with the run after it.
    2. The stem, everything before the run in which the first branch ends, is part of the first stage. Without
       branches, the first region beside the trunk that holds a contraction takes that place.
    3. The head, everything from the first pooled node (resolution 1) after the last branch or region, is part
       of the last stage, whatever its resolution: the width of a classifier may look like positions.

    A node beside the trunk has the stage of the trunk node that follows its nearest trunk ancestor (its
    nearest trunk dominator, if it is on the way to the output): a region belongs to where it ends. Nodes
    that nothing on the trunk leads to (parameters, masks, an encoder) have the stage of their first user.
    """
    place = _places(flow, graph, {name: index for index, name in enumerate(regions.trunk)})
    if not regions.trunk:
        return {node.name: 0 for node in graph.nodes}
    busy = {place[node] for node in flow.sources if flow.contracts(node)}
    beside = {place[node] for node in flow.sources if flow.contracts(node) and node.name not in regions.trunk}
    exits = {regions.trunk.index(branch.exit) for branch in regions.branches if branch.exit in regions.trunk}
    sizes = _pooled(_sizes(regions.trunk, resolution), max(exits or beside, default=-1))
    runs = _with_work(_fused((size, [index]) for index, size in enumerate(sizes)), busy)
    runs = _headless(_stemless(runs, min(exits or beside, default=0)), exits)
    stage = {index: number for number, (_, run) in enumerate(runs) for index in run}
    return {node.name: stage[place[node]] for node in graph.nodes}


def _places(flow: Flow, graph: fx.Graph, trunk: Mapping[str, int]) -> dict[fx.Node, int]:
    """Each node's trunk node, by index: itself, or the one where its region ends."""
    passed: dict[fx.Node, int] = {}
    place: dict[fx.Node, int] = {}
    for node, read in flow.sources.items():
        passed[node] = trunk.get(node.name, max((passed[source] for source in read), default=-1))
        if passed[node] >= 0:
            place[node] = min(passed[node] + (node.name not in trunk), len(trunk) - 1)
    place[graph.output_node()] = max(len(trunk) - 1, 0)
    for node in reversed(graph.nodes):
        place.setdefault(node, min((place[user] for user in node.users), default=0))
    return place


_Run = tuple[int, list[int]]
"""A resolution and the trunk indices that have it."""


def _sizes(trunk: Sequence[str], resolution: Mapping[str, int]) -> list[int]:
    known = [resolution[name] for name in trunk if name in resolution]
    sizes: list[int] = []
    for name in trunk:
        sizes.append(resolution.get(name, sizes[-1] if sizes else next(iter(known), 1)))
    return sizes


def _pooled(sizes: list[int], last: int) -> list[int]:
    head = next((index for index, size in enumerate(sizes) if index > last and size <= 1), len(sizes))
    return sizes[:head] + [1] * (len(sizes) - head)


def _fused(runs: Iterable[_Run]) -> list[_Run]:
    equal = groupby(runs, key=lambda run: run[0])
    return [(size, [index for _, run in group for index in run]) for size, group in equal]


def _with_work(runs: list[_Run], busy: Collection[int]) -> list[_Run]:
    kept: list[_Run] = []
    idle: list[int] = []
    for size, run in runs:
        idle = idle + run
        if not set(idle).isdisjoint(busy):
            kept.append((size, idle))
            idle = []
    if not kept:
        return [(1, idle)]
    return _fused([*kept, (kept[-1][0], idle)])


def _stemless(runs: list[_Run], first: int) -> list[_Run]:
    after = next(number for number, (_, run) in enumerate(runs) if first in run)
    return [(runs[after][0], [index for _, run in runs[: after + 1] for index in run]), *runs[after + 1 :]]


def _headless(runs: list[_Run], exits: Collection[int]) -> list[_Run]:
    while len(runs) > 1 and runs[-1][0] <= 1 and set(runs[-1][1]).isdisjoint(exits):
        *runs, (size, before), (_, head) = runs
        runs = [*runs, (size, before + head)]
    return runs
