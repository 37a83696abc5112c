"""Time against MACs as an SVG that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from dyncompile.latency.ratios import Ratio

_WIDTH, _HEIGHT, _EDGE = 640, 420, 56
_COLORS = ("#36c", "#c33", "#383", "#a60", "#727")


@dataclass(frozen=True)
class TimedPoint:
    """One thing that was timed: its name, which of several groups it is in, and its shares of the source."""

    name: str
    group: str
    macs: float
    time: Ratio


def timing_plot(points: Sequence[TimedPoint], title: str) -> str:
    """Points at (share of MACs, share of time) with quartiles; on the diagonal time falls as MACs do."""
    most = max(1.0, *(max(one.macs, one.time.high) for one in points)) * 1.05
    base, right = _HEIGHT - _EDGE, _WIDTH - 3 * _EDGE

    def x(share: float) -> float:
        return _EDGE + (right - _EDGE) * share / most

    def y(share: float) -> float:
        return base - (base - _EDGE) * share / most

    groups = list(dict.fromkeys(one.group for one in points))
    marks = [
        f"<path d='M{_EDGE} {_EDGE} V{base} H{right}' stroke='#999' fill='none'/>",
        f"<path d='M{x(0):.1f} {y(0):.1f} L{x(most):.1f} {y(most):.1f}' stroke='#bbb' "
        "stroke-dasharray='4 4' fill='none'/>",
        _words(_EDGE, _EDGE - 28, title),
        _words(_EDGE, _EDGE - 10, f"time, 0 to {most:.0%} of the source"),
        _words(right - 150, base + 34, f"MACs, 0 to {most:.0%} of the source"),
    ]
    for row, group in enumerate(groups):
        color = _COLORS[row % len(_COLORS)]
        marks.append(f"<circle cx='{right + 20}' cy='{_EDGE + 18 * row}' r='5' fill='{color}'/>")
        marks.append(_words(right + 32, _EDGE + 18 * row + 4, group))
        for one in (point for point in points if point.group == group):
            at, low, high = x(one.macs), y(one.time.low), y(one.time.high)
            marks.append(f"<path d='M{at:.1f} {low:.1f} V{high:.1f}' stroke='{color}'/>")
            tip = f"<title>{escape(one.name)}: {one.macs:.1%} of MACs, {one.time.median:.1%} of time</title>"
            middle = y(one.time.median)
            marks.append(f"<circle cx='{at:.1f}' cy='{middle:.1f}' r='4' fill='{color}'>{tip}</circle>")
            marks.append(_words(at + 7, middle - 5, one.name))
    style = "<style>text { font: 12px system-ui, sans-serif; fill: #444 }</style>"
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH} {_HEIGHT}' width='{_WIDTH}' "
        f"role='img'>{style}<rect width='100%' height='100%' fill='white'/>{''.join(marks)}</svg>\n"
    )


def _words(x: float, y: float, text: str) -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}'>{escape(text)}</text>"
