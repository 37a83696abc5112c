"""A plot as an SVG file that needs nothing else: a title, what the colors are, and what `charts` draws."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from dyncompile.report.charts import HEIGHT, WIDTH, Axis, Series, drawing

_LINE, _LETTER = 20, 7
"""Height of a line of the legend, and about the width of a letter."""
_LEFT = 12
_STYLE = (
    "text { font: 12px system-ui, sans-serif; fill: #1b2230; paint-order: stroke; stroke: white; "
    "stroke-width: 3px } .faint { fill: #667184 } .end-at { text-anchor: end } "
    ".center { text-anchor: middle } .grid { stroke: #dde2ea } .axis { stroke: #667184 } "
    ".line { fill: none; stroke-width: 1.5 } .point { fill-opacity: 0.7 } "
    ".dashed { stroke-dasharray: 4 4 } .ideal { stroke: #a3acb9 } "
)


def kind(number: int) -> str:
    """The style class of a group, counted from 0."""
    return f"g{number}"


def figure(
    title: str, x: Axis, y: Axis, series: Sequence[Series], groups: Mapping[str, str], note: str = ""
) -> str:
    """An SVG document.

    Args:
        title: above all.
        x: from left to right.
        y: from bottom to top.
        series: those of the n-th group are of `kind` n; ``dashed`` is another class that lines may have.
        groups: name -> color, for the legend.
        note: ends the legend.
    """
    legend, lines = _legend(groups, note)
    top = 36 + _LINE * lines
    body = f"{legend}<g transform='translate(0 {top})'>{drawing(x, y, series)}</g>"
    return document(title, body, top + HEIGHT, [*groups.values()])


def document(title: str, body: str, height: float, colors: Sequence[str]) -> str:
    """An SVG document `WIDTH` wide with a title, and with styles for groups of these colors."""
    rules = "".join(
        f".{kind(n)} {{ stroke: {color} }} .point.{kind(n)} {{ fill: {color} }} "
        for n, color in enumerate(colors)
    )
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='-{_LEFT} 0 {WIDTH + _LEFT} {height:g}' "
        f"width='{WIDTH + _LEFT}' role='img'><style>{_STYLE}{rules}</style>"
        f"<rect x='-{_LEFT}' width='100%' height='100%' fill='white'/>"
        f"<text y='20' style='font-size: 15px'>{escape(title)}</text>{body}</svg>\n"
    )


def _legend(groups: Mapping[str, str], note: str) -> tuple[str, int]:
    """A dot and a name per group, then the note; and how many lines that takes."""
    places = list(_places([*groups, note]))
    drawn = [
        f"<circle class='point {kind(n)}' cx='{x:g}' cy='{y - 4}' r='5'/>"
        f"<text x='{x + 10:g}' y='{y}'>{escape(name)}</text>"
        for n, (name, (x, y)) in enumerate(zip(groups, places, strict=False))
    ]
    x, y = places[-1]
    if note:
        drawn.append(f"<text class='faint' x='{x:g}' y='{y}'>{escape(note)}</text>")
    return "".join(drawn), (y - 24) // _LINE


def _places(names: Sequence[str]) -> Iterator[tuple[float, int]]:
    """Where each begins: side by side, or on the next line where it would not fit."""
    x, y = 6.0, 44
    for name in names:
        wide = 40 + _LETTER * len(name)
        if x > 6 and x + wide - 30 > WIDTH:
            x, y = 6.0, y + _LINE
        yield x, y
        x += wide
