"""An explanation as plain text."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

from dyncompile.report.explanation import Explanation, explain
from dyncompile.report.sections import Section, sections
from dyncompile.runtime.model import DynamicModel


def explain_model(dyn: DynamicModel, *, verbose: bool = False) -> str:
    """What was inserted where, what was left alone and why. `verbose` lists all names, not patterns."""
    return to_text(explain(dyn), verbose=verbose)


def to_text(one: Explanation, *, verbose: bool = False) -> str:
    """Sections separated by blank lines; no color, no box, no line wrapped."""
    return "\n\n".join("\n".join(_lines(section)) for section in sections(one, verbose=verbose))


def _lines(section: Section) -> Iterator[str]:
    yield section.title
    cells = [row.cells for row in section.rows]
    columns = [*zip_longest(*cells, section.columns, fillvalue="")]
    widths = [max(map(len, column)) for column in columns]
    if section.columns:
        yield _aligned(section.columns, widths)
    for row in section.rows:
        yield _aligned(row.cells, widths)
        yield from (f"      {detail}" for detail in row.details)


def _aligned(cells: tuple[str, ...], widths: list[int]) -> str:
    return "  " + "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
