"""Everything that passes may know about a program, computed once and frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import fx

from dyncompile.analysis.dims.algebra import Widths, active, elastics, is_batched, kept, unit
from dyncompile.analysis.dims.call import flat_types
from dyncompile.analysis.dims.dead import dead_dims
from dyncompile.analysis.dims.facts import DimFacts, GraphDims, dim_facts
from dyncompile.analysis.flow import Flow
from dyncompile.analysis.macs import MacsFacts, macs_facts
from dyncompile.analysis.ordinals import numbered
from dyncompile.analysis.points import PointFacts, find_points
from dyncompile.analysis.regions import Regions, find_regions
from dyncompile.analysis.samples import find_meetings
from dyncompile.analysis.stages import find_stages
from dyncompile.collector import paused_collector
from dyncompile.program import MODES, Mode, Program
from dyncompile.runtime.ops import DECISIONS, FOLDABLE


@dataclass(frozen=True)
class Facts:
    """Facts of one program.

    Attributes:
        dims: dimension types: what is elastic, what is frozen and why.
        regions: residual branches and the trunk of the evaluation graph.
        macs: multiply-accumulates per node as polynomials in elastic dims.
        dead: elastic dims that nothing reads; a static network does without them.
        points: where decisions can be taken, and which of them come before each elastic dim.
        stage_of: elastic name -> stage index (a run of the trunk at one resolution).
        stage_at: the same for nodes of the evaluation graph.
        parameters: parameter name -> number of elements.
        order: position of the nodes of the evaluation graph.
        meetings: its nodes at which a row's values come to depend on other rows.
    """

    dims: DimFacts
    regions: Regions
    macs: MacsFacts
    dead: frozenset[str]
    points: PointFacts
    stage_of: Mapping[str, int]
    stage_at: Mapping[str, int]
    parameters: Mapping[str, int]
    order: Mapping[str, int]
    meetings: tuple[str, ...]

    def elastics_of(self, tensor: str) -> list[str]:
        """Names of the elastic dims in a parameter or buffer."""
        return list(dict.fromkeys(e.name for dim in self.dims.state[tensor] for e in elastics(dim)))

    def kept(self, tensor: str, axis: int, widths: Widths) -> torch.Tensor:
        """Positions of one axis that stay at the given widths: int64 [n]."""
        return kept(self.dims.state[tensor][axis], widths)

    def narrowed_numel(self, widths: Widths) -> int:
        """Number of parameter elements at the given widths."""
        total = 0
        for name in self.parameters:
            n = 1
            for dim in self.dims.state[name]:
                n *= active(dim, widths)
            total += n
        return total

    @cached_property
    def covered_parameters(self) -> float:
        """Share of parameter elements in tensors that an elastic dim touches."""
        covered = sum(n for name, n in self.parameters.items() if self.elastics_of(name))
        return covered / max(sum(self.parameters.values()), 1)

    @cached_property
    def unit_of(self) -> Mapping[str, int]:
        """Elastic name -> channels that a position stands for: the head dim for a head, 1 for a channel.

        That is where a contraction first computes it. A table of biases has an entry per head, and what is
        behind a flattened map has one per pixel.
        """
        found: dict[str, int] = {}
        dims = self.dims.graphs["eval"]
        for node in dims.contractions:
            for dim in (dim for typed in flat_types(dims.types.get(node)) for dim in typed):
                for elastic in elastics(dim):
                    found.setdefault(elastic.name, unit(dim, elastic.name))
        return found


@paused_collector()
def analyze(program: Program) -> Facts:
    """All facts of a program. Pure: the program is only read."""
    dims = dim_facts(program)
    graph = program.graphs["eval"]
    flow = Flow.of(graph, DECISIONS)
    counted: dict[Mode, set[fx.Node]] = {mode: numbered(program.graphs[mode]) for mode in MODES}
    regions = find_regions(graph, flow, counted["eval"])
    stage = find_stages(graph, flow, regions, _resolution(dims.graphs["eval"]))
    return Facts(
        dims=dims,
        regions=regions,
        macs=macs_facts(graph, dims.graphs["eval"]),
        dead=dead_dims(program, dims),
        points=find_points(program, dims, regions, FOLDABLE, counted),
        stage_of=_elastic_stages(graph, dims, stage),
        stage_at=stage,
        parameters={name: p.numel() for name, p in program.state.named_parameters()},
        order={node.name: position for position, node in enumerate(graph.nodes)},
        meetings=find_meetings(flow, dims.graphs["eval"].types),
    )


def _resolution(dims: GraphDims) -> dict[str, int]:
    """Node -> number of positions: the product of its axes that are neither batch nor elastic.

    Channels are elastic, so that works in any memory order: [B, C, H, W], [B, H, W, C] and [B, N, C].
    """
    out: dict[str, int] = {}
    for name, found in dims.types.items():
        typed = flat_types(found)
        if typed:
            positions = [active(dim, {}) for dim in typed[0] if not elastics(dim) and not is_batched(dim)]
            out[name] = prod(positions)
    return out


def _elastic_stages(graph: fx.Graph, dims: DimFacts, stage: Mapping[str, int]) -> dict[str, int]:
    """An elastic dim belongs to the stage of the first node whose output carries it."""
    out: dict[str, int] = {}
    for node in graph.nodes:
        if node.op != "call_function" or node.name not in stage:
            continue
        for found in flat_types(dims.graphs["eval"].types.get(node.name)):
            for dim in found:
                for elastic in elastics(dim):
                    out.setdefault(elastic.name, stage[node.name])
    return {name: out.get(name, 0) for name in dims.elastic}
