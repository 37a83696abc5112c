"""Routes that are worth comparing: every sample alike."""

from __future__ import annotations

from dyncompile.program import Domain, Route
from dyncompile.runtime.model import DynamicModel


def column_routes(dyn: DynamicModel) -> dict[str, Route]:
    """Every column of all one-hot choices together, by label, as routes of one row; the rest at full.

    Choices with fewer columns stay at their last one. Empty where no choice is one-hot.
    """
    one_hot = [choice for choice in dyn.choices.values() if choice.domain is Domain.ONE_HOT]
    routes: dict[str, Route] = {}
    for column in range(max((choice.width for choice in one_hot), default=0)):
        columns = {choice.name: min(column, choice.width - 1) for choice in one_hot}
        labels = {c.labels[columns[c.name]] if c.labels else str(column) for c in one_hot}
        routes[" / ".join(sorted(labels))] = dyn.route(columns)
    return routes
