"""Time against MACs as an SVG that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from dyncompile.latency.ratios import Ratio
from dyncompile.report.charts import HEIGHT, WIDTH, Axis, Series, drawing

_HEAD = 56
"""Above the plot: a title, and what the colors are."""
_COLORS = ("#2f6fde", "#c93a3a", "#168a66", "#c96f1a", "#7d55c7", "#bb3a7c")
_STYLE = (
    "text { font: 12px system-ui, sans-serif; fill: #1b2230; paint-order: stroke; stroke: white; "
    "stroke-width: 3px } .faint { fill: #667184 } .end-at { text-anchor: end } "
    ".center { text-anchor: middle } .grid { stroke: #dde2ea } .axis { stroke: #667184 } "
    ".line { fill: none; stroke-width: 1.5 } "
    ".ideal { stroke: #a3acb9; stroke-dasharray: 4 4 } "
)


@dataclass(frozen=True)
class TimedPoint:
    """One thing that was timed: its name, which of several groups it is in, and its shares of the source."""

    name: str
    group: str
    macs: float
    time: Ratio


def timing_plot(points: Sequence[TimedPoint], title: str) -> str:
    """Points at (share of MACs, share of time) with quartiles; on the dashed line time falls as MACs do."""
    most = 1.08 * max(1.0, *(max(one.macs, one.time.high) for one in points))
    groups = list(dict.fromkeys(one.group for one in points))
    series = [_series(n, [one for one in points if one.group == group]) for n, group in enumerate(groups)]
    ideal = Series("ideal", [(0.0, 0.0), (most, most)], dots=False)
    x, y = (Axis(f"{name}, share of the source's", 0.0, most, percent=True) for name in ("MACs", "time"))
    colors = "".join(f".g{n} {{ stroke: {c} }} .point.g{n} {{ fill: {c} }} " for n, c in enumerate(_COLORS))
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='-12 0 {WIDTH + 12} {HEIGHT + _HEAD}' "
        f"width='{WIDTH + 12}' role='img'><style>{_STYLE}{colors}</style>"
        f"<rect x='-12' width='100%' height='100%' fill='white'/>"
        f"<text y='20' style='font-size: 15px'>{escape(title)}</text>{''.join(_legend(groups))}"
        f"<g transform='translate(0 {_HEAD})'>{drawing(x, y, [ideal, *series])}</g></svg>\n"
    )


def _kind(number: int) -> str:
    return f"g{number % len(_COLORS)}"


def _series(number: int, points: Sequence[TimedPoint]) -> Series:
    """A line from the cheapest to the dearest; every second one has its names below."""
    ordered = sorted(points, key=lambda one: one.macs)
    return Series(
        _kind(number),
        [(one.macs, one.time.median) for one in ordered],
        [one.name.removeprefix(one.group).strip() for one in ordered],
        below=number % 2 == 1,
        spans=[(one.time.low, one.time.high) for one in ordered],
        titles=[f"{one.name}: {one.macs:.1%} of MACs, {one.time.median:.1%} of time" for one in ordered],
    )


def _legend(groups: Sequence[str]) -> Iterator[str]:
    x = 6.0
    for number, group in enumerate(groups):
        yield f"<circle class='point {_kind(number)}' cx='{x:g}' cy='40' r='5'/>"
        yield f"<text x='{x + 10:g}' y='44'>{escape(group)}</text>"
        x += 40 + 7 * len(group)
    yield f"<text class='faint' x='{x:g}' y='44'>dashed: time falls as MACs do</text>"
