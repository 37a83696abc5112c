"""A side for every column of a one-hot choice.

    total = zeros;  for every column:  if it is the one: total = what it gives

Conditions one after the other, not inside one another: exporters trace the sides of a condition several
times, and those of conditions inside it as often again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import fx

from dyncompile.deploy.exports import forms
from dyncompile.deploy.exports.frames import ROWS, Frame, Full
from dyncompile.program import Choice

Write = Callable[[Frame, int], list[fx.Node]]
"""Writes what a column gives into its side."""


def by_column(
    frame: Frame, choice: Choice, write: Write, blank: Callable[[Frame], list[fx.Node]], full: Full
) -> list[fx.Node]:
    """What the column gives that the decision names; `blank` makes values of the same shapes."""
    rows = frame.find((ROWS, choice.name))

    def column(at: int) -> tuple[Frame, Callable[[Frame], Sequence[fx.Node]]]:
        return frame.inside({choice.name: choice.row(at)}), lambda side: write(side, at)

    if choice.width == 2:
        return frame.cond(_picks(frame, rows, 0), [column(0), column(1)], full)
    total = frame.cond(_picks(frame, rows, 0), [column(0), (frame.inside(), blank)], full)
    for at in range(1, choice.width):
        total = frame.cond(_picks(frame, rows, at), [column(at), _as_before(frame, choice, total)], full)
    return total


def _picks(frame: Frame, rows: fx.Node, column: int) -> fx.Node:
    return frame.call(forms.picks, rows, column)


def _as_before(
    frame: Frame, choice: Choice, total: Sequence[fx.Node]
) -> tuple[Frame, Callable[[Frame], Sequence[fx.Node]]]:
    """A side that gives what there is."""
    keys = [(f"{choice.name} so far", str(i)) for i in range(len(total))]
    frame.values.update(zip(keys, total, strict=True))
    return frame.inside(), lambda side: [side.find(key) for key in keys]
