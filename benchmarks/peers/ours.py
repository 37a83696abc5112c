"""dyncompile: widths and dropped branches in one composition, at their defaults."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

import dyncompile as dc
from benchmarks.peers.subject import Converted
from dyncompile.analysis.facts import Facts
from dyncompile.analysis.skips import find_skips
from dyncompile.capture import capture
from dyncompile.errors import NoSiteError
from dyncompile.pipeline import apply_passes
from dyncompile.spec import parse_specs

WIDTHS, BRANCHES = "dsnet", "lcnet(channels=False)"
"""For all models: a gate decides one width for the network; gates decide every residual branch there is."""
SUPERNET = "dsnet(gate=False, embedding=True)"
"""Widths as the peers have them, by policy: what stands before a gate or under a layer norm moves, too."""


def convert(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Converted:
    """See `benchmarks.peers.subject.Contender`. In two steps what `dynamize` does in one."""
    program = edited = capture(model, args, kwargs)
    refused: list[NoSiteError] = []
    for spec in (WIDTHS, BRANCHES):  # VGG and its like have no branches, others no widths behind a gate
        try:
            edited = apply_passes(edited, parse_specs(spec, {}))
        except NoSiteError as error:
            refused.append(error)
    if len(refused) == 2:
        raise refused[0]
    dyn = dc.DynamicModel(edited).eval()

    def supernet() -> Converted:
        return _converted(dc.DynamicModel(apply_passes(program, parse_specs(SUPERNET, {}))).eval())

    return replace(_converted(dyn), supernet=supernet)


def _converted(dyn: dc.DynamicModel) -> Converted:
    skips = find_skips(dyn.program.graphs["eval"])
    reads = {str(node.target) for skip in skips for node in skip.body if node.op == "get_attr"}
    return Converted(
        full=lambda *args, **kwargs: dyn.run(*args, policy=dc.Full(), **kwargs)[0],
        smallest=lambda *args, **kwargs: dyn.run(*args, policy=dc.Smallest(), **kwargs)[0],
        elastic=_moved(dyn.facts, set(dyn.program.sized)),
        skippable=frozenset(reads),
        blocks=len(skips),
    )


def _moved(facts: Facts, sized: set[str]) -> frozenset[str]:
    """Parameters with an axis that one of these dims sizes."""
    return frozenset(name for name in facts.parameters if sized & set(facts.elastics_of(name)))
