"""Which routes to time, so that every term meets every combination of its sizes.

A covering design, built greedily: a route takes up combinations as long as they agree with it, and what is
left open is at full size. For choices that only neighbors share it has as many routes as the largest term has
combinations, however many choices there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dyncompile.latency.axes import Axis
from dyncompile.latency.terms import Term, combinations

Anchors = Mapping[str, int]
"""Choice -> the anchor that all rows take."""


def routes_to_time(terms: Sequence[Term], axes: Mapping[str, Axis]) -> list[Anchors]:
    """Routes that cover all combinations; the first one is the full route."""
    full = {name: axis.full for name, axis in axes.items()}
    open_ones = {
        tuple(zip(term.axes, one, strict=True)): None for term in terms for one in combinations(term, axes)
    }
    routes: list[Anchors] = []
    route = dict(full)
    while True:
        routes.append(route)
        for done in [one for one in open_ones if _agrees(one, route)]:
            del open_ones[done]
        if not open_ones:
            return routes
        route = dict[str, int]()
        for one in open_ones:
            if all(route.get(name, anchor) == anchor for name, anchor in one):
                route.update(one)
        route = {**full, **route}


def _agrees(combination: tuple[tuple[str, int], ...], route: Anchors) -> bool:
    return all(route[name] == anchor for name, anchor in combination)
