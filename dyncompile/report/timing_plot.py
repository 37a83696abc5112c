"""Time against MACs as an SVG that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from dyncompile.latency.ratios import Ratio
from dyncompile.report.charts import Axis, Series
from dyncompile.report.figure import figure, kind

_COLORS = ("#2f6fde", "#c93a3a", "#168a66", "#c96f1a", "#7d55c7", "#bb3a7c")


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
    ideal = Series("ideal dashed", [(0.0, 0.0), (most, most)], dots=False)
    x, y = (Axis(f"{name}, share of the source's", 0.0, most, percent=True) for name in ("MACs", "time"))
    colors = dict(zip(groups, cycle(_COLORS), strict=False))
    return figure(title, x, y, [ideal, *series], colors, "dashed: time falls as MACs do")


def _series(number: int, points: Sequence[TimedPoint]) -> Series:
    """A line from the cheapest to the dearest; every second one has its names below."""
    ordered = sorted(points, key=lambda one: one.macs)
    return Series(
        kind(number),
        [(one.macs, one.time.median) for one in ordered],
        [one.name.removeprefix(one.group).strip() for one in ordered],
        below=number % 2 == 1,
        spans=[(one.time.low, one.time.high) for one in ordered],
        titles=[f"{one.name}: {one.macs:.1%} of MACs, {one.time.median:.1%} of time" for one in ordered],
    )
