"""Tables of the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import count


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str | tuple[str, ...]]], numbers: Sequence[int] = ()
) -> str:
    """A table; cells that are tuples have their details below, columns in `numbers` stand to the right."""

    def line(tag: str, cells: Iterable[str]) -> str:
        kinds = (" class='number'" if i in numbers else "" for i in count())
        return (
            "<tr>"
            + "".join(f"<{tag}{k}>{cell}</{tag}>" for cell, k in zip(cells, kinds, strict=False))
            + "</tr>"
        )

    head = line("th", map(escape, columns)) if columns else ""
    body = "".join(line("td", map(_cell, row)) for row in rows)
    return f"<table>{head}{body}</table>"


def _cell(cell: str | tuple[str, ...]) -> str:
    if isinstance(cell, str):
        return escape(cell)
    return escape(cell[0]) + "".join(f"<small>{escape(detail)}</small>" for detail in cell[1:])
