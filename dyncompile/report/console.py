"""An explanation for a terminal, with rich."""

from __future__ import annotations

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dyncompile.report.explanation import Explanation
from dyncompile.report.sections import Row, Section, sections


def to_console(one: Explanation, *, verbose: bool = False) -> Group:
    """A renderable with the same sections as the plain text."""
    return Group(*(_titled(section) for section in sections(one, verbose=verbose)))


def _titled(section: Section) -> Group:
    return Group(Text(section.title, style="bold cyan"), Padding(_table(section), (0, 0, 1, 2)))


def _table(section: Section) -> Table:
    """One table per section; a row's details stand in its widest cell, under what they explain."""
    table = Table(box=None, show_header=bool(section.columns), padding=(0, 2, 0, 0), header_style="dim")
    width = len(section.columns) or max(len(row.cells) for row in section.rows)
    for i in range(width):
        table.add_column(section.columns[i] if section.columns else "", overflow="fold")
    at = 0 if section.columns else width - 1
    for row in section.rows:
        table.add_row(*(_cell(row, i, at) for i in range(width)))
    return table


def _cell(row: Row, i: int, at: int) -> Text:
    text = Text(row.cells[i] if i < len(row.cells) else "")
    if i == at:
        for detail in row.details:
            text.append(f"\n{detail}", style="dim")
    return text
