"""The graph that runs without parting rows: all that full capacity needs, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from dyncompile.analysis.skips import Alternative, Skip, find_skips
from dyncompile.program import Choice, Route, copy_graph
from dyncompile.runtime import ops
from dyncompile.torchlib import items


@dataclass(frozen=True)
class Flat:
    """A graph at full capacity, and the routes that it can carry out.

    Attributes:
        graph: without alternatives that full capacity does not run.
        needs: (choice, weights, whether what they weigh is in the graph).
    """

    graph: fx.Graph
    needs: tuple[tuple[str, tuple[float, ...], bool], ...]

    def serves(self, route: Route) -> bool:
        """Whether all rows need just what the graph runs."""
        return all(
            bool(((route[choice] @ torch.tensor(weights).to(route[choice]) != 0) == kept).all())
            for choice, weights, kept in self.needs
        )


def flatten(graph: fx.Graph, choices: Mapping[str, Choice]) -> Flat:
    """What full capacity leaves of a graph; the graph itself where that is all."""
    skips = find_skips(graph)
    every = [one for skip in skips for one in skip.alternatives]
    fixed = [one for skip in skips if skip.product.target is ops.gain for one in skip.alternatives]
    needs = dict.fromkeys((*one.condition, one in fixed or _is_on(one, choices)) for one in every)
    if all(kept for _, _, kept in needs):
        return Flat(graph, tuple(needs))
    own = copy_graph(graph)
    twins = dict(zip(graph.nodes, own.nodes, strict=True))
    dropped = set[fx.Node]()
    for skip in skips:
        kept = [i for i, one in enumerate(skip.alternatives) if _is_on(one, choices)]
        if skip.product.target is ops.mix and kept:
            _keep(skip, twins[skip.product], kept)
            gone = (one for i, one in enumerate(skip.alternatives) if i not in kept)
            dropped.update(node for one in gone for node in one.body)
    for node in reversed(list(graph.nodes)):
        if node in dropped:
            own.erase_node(twins[node])
    own.lint()
    return Flat(own, tuple(needs))


def _is_on(one: Alternative, choices: Mapping[str, Choice]) -> bool:
    choice, weights = one.condition
    return sum(a * b for a, b in zip(choices[choice].full, weights, strict=True)) != 0


def _keep(skip: Skip, product: fx.Node, kept: Sequence[int]) -> None:
    """Let a product read some of its alternatives."""
    outputs, decision, weights, batch = product.args
    chosen = [items(outputs)[i] for i in kept], decision, tuple(items(weights)[i] for i in kept), batch
    product.args = chosen
