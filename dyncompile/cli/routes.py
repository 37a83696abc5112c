"""From the command line's words to a route."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import torch

from dyncompile.errors import RouteError
from dyncompile.program import Choice, Domain, Route
from dyncompile.report.columns import column_routes
from dyncompile.runtime.model import DynamicModel


def parse_route(dyn: DynamicModel, words: Sequence[str], *, smallest: bool) -> Route:
    """A route of one row from ``CHOICE=LABEL``, ``CHOICE=NUMBER`` or ``CHOICE=1,0,1`` (bits and gains).

    Choices that no word names are at full capacity, or at their cheapest.

    Raises:
        RouteError: an unknown choice or label, or numbers outside the choice's domain.
    """
    rows = {name: one.smallest if smallest else one.full for name, one in dyn.choices.items()}
    for word in words:
        name, equals, value = word.partition("=")
        if name not in dyn.choices or not equals:
            near = difflib.get_close_matches(name, list(dyn.choices), 1)
            fix = f"did you mean {near[0]!r}?" if near else f"choices are: {', '.join(dyn.choices)}"
            raise RouteError(f"{word!r} is no CHOICE=LABEL of this model", fix=fix)
        rows[name] = _row(dyn.choices[name], value)
    return {name: dyn.choices[name].check(torch.tensor([row])) for name, row in rows.items()}


def _row(choice: Choice, value: str) -> tuple[float, ...]:
    if value in ("full", "smallest"):
        return choice.full if value == "full" else choice.smallest
    numbers = _numbers(value)
    column = _column(choice, value, numbers) if choice.domain is Domain.ONE_HOT else None
    if column is not None:
        return choice.row(column)
    if len(numbers) == choice.width:
        return numbers
    known = ", ".join(choice.labels) or f"{choice.width} numbers separated by commas"
    raise RouteError(
        f"choice {choice.name!r} has no column {value!r}", fix=f"give one of: full, smallest, {known}"
    )


def _column(choice: Choice, value: str, numbers: tuple[float, ...]) -> int | None:
    """The column of a label, ``0.50`` for ``0.5`` as well, or else of its position, a plain integer."""
    if value in choice.labels:
        return choice.labels.index(value)
    if value.isdecimal():
        return int(value) if int(value) < choice.width else None
    named = [_numbers(label) for label in choice.labels]
    return named.index(numbers) if numbers and numbers in named else None


def _numbers(words: str) -> tuple[float, ...]:
    """Numbers between commas; none where a word is no number."""
    try:
        return tuple(float(word) for word in words.split(","))
    except ValueError:
        return ()


def uniform_routes(dyn: DynamicModel) -> dict[str, Route]:
    """Routes worth comparing, by label: every column of all one-hot choices together, and the cheapest."""
    return {"smallest": parse_route(dyn, [], smallest=True), **column_routes(dyn)}
