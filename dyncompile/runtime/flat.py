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
from dyncompile.runtime.takers import plain
from dyncompile.torchlib import items

Need = tuple[tuple[float, ...], bool]
"""Weights of something that a choice decides on, and whether it is in a graph."""


@dataclass(frozen=True)
class Flat:
    """A graph at full capacity, and the routes that it can carry out.

    Attributes:
        graph: without alternatives that full capacity does not run.
        needs: by choice, what it decides on.
    """

    graph: fx.Graph
    needs: Mapping[str, tuple[Need, ...]]

    def serves(self, route: Route) -> bool:
        """Whether all rows need just what the graph runs."""
        return all(_serves(own, route[choice]) for choice, own in self.needs.items())


def _serves(needs: Sequence[Need], rows: Tensor) -> bool:
    """In plain numbers: operators would take longer, and a counter of MACs would see a matrix product."""
    different = set(map(tuple, plain(rows)))
    return all(
        (sum(a * b for a, b in zip(row, weights, strict=True)) != 0) == kept
        for row in different
        for weights, kept in needs
    )


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


def _by_choice(needs: Iterable[tuple[str, tuple[float, ...], bool]]) -> dict[str, tuple[Need, ...]]:
    """(choice, weights, whether what they weigh is there), by choice."""
    found: dict[str, tuple[Need, ...]] = {}
    for choice, weights, kept in needs:
        found[choice] = (*found.get(choice, ()), (weights, kept))
    return found


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
