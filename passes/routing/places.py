"""From a connection in a graph to modules that may stand in for it, and what they cost."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dyncompile.analysis.facts import Facts
from dyncompile.analysis.flow import Flow
from dyncompile.analysis.macs import evaluate
from dyncompile.analysis.points import channel_axis
from dyncompile.passes.routing.candidates import Activation, Nothing, Place, find_candidate
from dyncompile.passes.routing.connections import Connection, ending, sample_shape
from dyncompile.passes.routing.narrowing import narrowed
from dyncompile.program import Mode, Program
from dyncompile.runtime.ops import DECISIONS


def place_of(one: Connection, program: Program, facts: Facts, rank: float, share: float) -> Place | str:
    """What candidates are built for, or why there can be none.

    `rank` and `share` are those of low-rank and narrower candidates, relative to the connection's channels.
    """
    graph, types = program.graphs["eval"], facts.dims.graphs["eval"].types
    nodes = program.nodes["eval"]
    shapes = takes, gives = sample_shape(nodes[one.entry]), sample_shape(nodes[one.output])
    axes: list[int] = []
    for name, shape in zip((one.entry, one.output), shapes, strict=True):
        found = types.get(name)
        if not isinstance(found, tuple) or not shape:
            return f"`{name}` has no channels"
        axes.append(channel_axis(found) - len(found))
    last = axes == [-1, -1]
    if not last and axes != [-len(takes), -len(gives)]:
        return f"channels lie along axis {axes[0]} of `{one.entry}` and {axes[1]} of `{one.output}`"
    normed, activation = ending(nodes[one.output], Flow.of(graph, DECISIONS))
    ends: dict[Mode, tuple[str, str]] = {
        mode: (entry, output) for mode, (entry, output, _) in one.nodes.items()
    }
    return Place(
        name=one.name,
        takes=takes,
        gives=gives,
        last=last,
        residual=one.residual,
        normed=normed,
        activation=None if activation is None else partial(Activation, activation),
        rank=max(1, round(rank * min(takes[axes[0]], gives[axes[1]]))),
        narrow=partial(narrowed, program, facts, ends, share),
    )


def build(
    names: Iterable[str], place: Place, *, zero: bool = False
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """(candidates by name, reasons why others do not fit); always the same for the same place."""
    built: dict[str, nn.Module] = {}
    refused: dict[str, str] = {}
    for name in names:
        digest = hashlib.sha256(f"{place.name}.{name}".encode()).digest()
        with torch.random.fork_rng(devices=[]):  # pyright: ignore
            torch.manual_seed(int.from_bytes(digest[:7], "big"))  # pyright: ignore
            found = find_candidate(name)(place)
        if isinstance(found, str):
            refused[name] = found
        else:
            built[name] = _zeroed(found) if zero else found
    return built, refused


@torch.no_grad()
def _zeroed(module: nn.Module) -> nn.Module:
    """A module whose last weights are 0, so that it gives 0 (before its activation)."""
    weighted = [one for one in module.modules() if isinstance(getattr(one, "weight", None), nn.Parameter)]
    for parameter in weighted[-1].parameters(recurse=False) if weighted else ():
        parameter.zero_()
    return module


def own_macs(one: Connection, facts: Facts) -> int:
    """MACs per sample of what a connection computes in the source."""
    return sum(evaluate(cost, {}) for node, cost in facts.macs.nodes.items() if node in one.inside)


def module_macs(module: nn.Module, place: Place, like: torch.Tensor) -> int:
    """MACs per sample of a candidate, counted on zeros of the dtype and device of `like`."""
    if isinstance(module, Nothing):
        return 0
    training = module.training
    own = module.eval().to(like.device, like.dtype)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        own(like.new_zeros(1, *place.takes))
    module.train(training)
    return counter.get_total_flops() // 2
