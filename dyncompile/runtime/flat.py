"""Graphs that run without parting rows: what full capacity needs, or it and all alternatives side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from dyncompile.analysis.dims.call import bind
from dyncompile.analysis.skips import Alternative, Skip, find_skips
from dyncompile.program import Choice, Route, copy_graph
from dyncompile.resize import set_arguments
from dyncompile.runtime import ops
from dyncompile.torchlib import items


@dataclass(frozen=True)
class Flat:
    """A graph at full capacity, and the routes that it can carry out.

    Attributes:
        graph: without alternatives that full capacity does not run.
        needs: by choice, the weights [width, n] of what it decides on, and which of that [n] is in the graph.
    """

    graph: fx.Graph
    needs: Mapping[str, tuple[Tensor, Tensor]]

    def serves(self, route: Route) -> bool:
        """Whether all rows need just what the graph runs."""
        return all(
            bool(((_weighed(route[choice], weights) != 0) == kept.to(route[choice].device)).all())
            for choice, (weights, kept) in self.needs.items()
        )


def _weighed(rows: Tensor, weights: Tensor) -> Tensor:
    """`rows` [B, width] times `weights` [width, n], without a matrix product: counters would see its MACs."""
    return (rows.unsqueeze(-1) * weights.to(rows)).sum(1)


def flatten(graph: fx.Graph, choices: Mapping[str, Choice]) -> Flat:
    """What full capacity leaves of a graph; the graph itself where that is all."""
    skips = find_skips(graph)
    every = [one for skip in skips for one in skip.alternatives]
    fixed = [one for skip in skips if skip.product.target is ops.gain for one in skip.alternatives]
    needs = dict.fromkeys((*one.condition, one in fixed or _is_on(one, choices)) for one in every)
    if all(kept for _, _, kept in needs):
        return Flat(graph, _by_choice(needs))
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
    return Flat(own, _by_choice(needs))


def _by_choice(needs: Iterable[tuple[str, tuple[float, ...], bool]]) -> dict[str, tuple[Tensor, Tensor]]:
    """(choice, weights, whether what they weigh is there), as tensors by choice."""
    found: dict[str, list[tuple[tuple[float, ...], bool]]] = {}
    for choice, weights, kept in needs:
        found.setdefault(choice, []).append((weights, kept))
    return {
        choice: (torch.tensor([weights for weights, _ in own]).T, torch.tensor([kept for _, kept in own]))
        for choice, own in found.items()
    }


def _is_on(one: Alternative, choices: Mapping[str, Choice]) -> bool:
    choice, weights = one.condition
    return sum(a * b for a, b in zip(choices[choice].full, weights, strict=True)) != 0


def _keep(skip: Skip, product: fx.Node, kept: Sequence[int]) -> None:
    """Let a product read some of its alternatives."""
    outputs, decision, weights, batch = product.args
    chosen = [items(outputs)[i] for i in kept], decision, tuple(items(weights)[i] for i in kept), batch
    product.args = chosen


def side_by_side(graph: fx.Graph) -> fx.Graph:
    """Outputs (the source's part, an alternative) in turn, for all alternatives with parameters.

    The trunk goes on with the source's parts. Norms inside alternatives use the statistics of the batch.
    """
    own = copy_graph(graph)
    pairs: list[fx.Node] = []
    for skip in find_skips(own):
        if skip.product.target is ops.mix:
            first, *others = skip.alternatives
            for one in others:
                if any(node.op == "get_attr" for node in one.body):
                    pairs += [first.output, one.output]
                    _train_norms(one)
            skip.product.replace_all_uses_with(first.output)
            own.erase_node(skip.product)
    end = own.output_node()
    end.args = (tuple(pairs),)
    own.eliminate_dead_code()
    own.lint()
    return own


def _train_norms(one: Alternative) -> None:
    for node in one.body:
        if node.target is torch.ops.aten.batch_norm.default:
            set_arguments(node, {**bind(node), "training": True})
