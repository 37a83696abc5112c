"""Accuracy against MACs as SVG, one figure per network: a few lines, so that it takes no plotting library."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fashion.summary import FOLDER, Key, Result, read

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 640, 420, 60, 40, 150, 50
SERIES = {
    "learned": "#0b62a4",
    "other thresholds": "#8fb8de",
    "one exit for all": "#8e44ad",
    "nobody leaves": "#2c3e50",
    "static": "#c0392b",
    "fixed routes": "#7f8c8d",
    "random routes": "#e67e22",
    "full": "#27ae60",
}
Point = tuple[float, float]
"""Share of MACs, accuracy."""

CONTROLS = ("fixed routes", "random routes")
_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20)

Series = dict[str, list[Point]]


@dataclass(frozen=True, slots=True)
class Axes:
    """Maps shares in [0, right] and accuracies in [low, high] to pixels."""

    low: float
    high: float
    right: float

    def place(self, point: Point) -> Point:
        """Pixels from the left and from the top."""
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * point[0] / self.right
        y = _TOP + (_HEIGHT - _TOP - _BOTTOM) * (self.high - point[1]) / (self.high - self.low)
        return round(x, 1), round(y, 1)


def points(runs: Sequence[Result]) -> Series:
    """What every run contributes to each series."""
    series: Series = {name: [] for name in SERIES}
    for run in runs:
        dynamic = run["dynamic"]
        series["learned"].append((dynamic["share"], dynamic["accuracy"]))
        series["random routes"].append((dynamic["path_share"], run["random"]["accuracy"]))
        fixed = _of(run["fixed"])
        if "curve" in run:  # exits: everybody at each of them, and nobody at any
            series["one exit for all"] += fixed[:-1]
            series["nobody leaves"] += fixed[-1:]
        else:
            series["fixed routes"] += fixed
        series["other thresholds"] += _of(run.get("curve", ()))
        series["static"].append((run["static"][0]["share"], run["static"][0]["accuracy"]))
        series["full"] += _of((run["source"], run["static"][1]))
    return series


def _of(rows: Iterable[Result]) -> list[Point]:
    return [(row["share"], row["accuracy"]) for row in rows]


def curves(runs: Sequence[Result]) -> list[list[Point]]:
    """What thresholds of early exits give, one line per run that has any, from the cheapest on."""
    return [sorted(_of(run["curve"])) for run in runs if "curve" in run]


def figure(title: str, series: Series, lines: Sequence[Sequence[Point]] = ()) -> str:
    """An SVG document."""
    axes = _axes(series)
    drawn = (*_frame(title, axes), *_lines(axes, lines), *_marks(axes, series), *_legend(series, axes))
    body = "\n".join(drawn)
    size = f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    return f'{head}\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'


def _axes(series: Series) -> Axes:
    """Room for every series; controls at chance are left out where they would flatten all else."""
    right = 1.05 * max(1.0, *(x for found in series.values() for x, _ in found))
    values = [y for found in series.values() for _, y in found]
    kept = [y for name, found in series.items() if name not in CONTROLS for _, y in found] or values
    span = max(0.02, max(kept) - min(kept))
    low, high = max(min(values), min(kept) - 2 * span), max(values)
    margin = max(0.002, (high - low) / 20)
    return Axes(low - margin, high + margin, right)


def _ticks(low: float, high: float) -> Iterator[float]:
    """At most about seven round numbers between two accuracies, in percent."""
    step = next((one for one in _STEPS if 100 * (high - low) <= 7 * one), _STEPS[-1])
    first = math.ceil(100 * low / step)
    while first * step <= 100 * high:
        yield first * step
        first += 1


def _frame(title: str, axes: Axes) -> Iterator[str]:
    yield f'<text x="{_LEFT}" y="22" font-size="14">{title}</text>'
    for percent in range(0, int(100 * axes.right) + 1, 20):
        x, y = axes.place((percent / 100, axes.low))
        yield f'<line x1="{x}" y1="{_TOP}" x2="{x}" y2="{y}" stroke="#eeeeee"/>'
        yield f'<text x="{x}" y="{y + 18}" text-anchor="middle">{percent}</text>'
    for value in _ticks(axes.low, axes.high):
        x, y = axes.place((0, value / 100))
        yield f'<line x1="{x}" y1="{y}" x2="{_WIDTH - _RIGHT}" y2="{y}" stroke="#eeeeee"/>'
        yield f'<text x="{x - 6}" y="{y + 4}" text-anchor="end">{value:g}</text>'
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    yield f'<text x="{middle}" y="{_HEIGHT - 10}" text-anchor="middle">MACs, % of the source</text>'
    yield f'<text x="14" y="{_HEIGHT / 2}" transform="rotate(-90 14 {_HEIGHT / 2})">test accuracy, %</text>'


def _lines(axes: Axes, lines: Iterable[Sequence[Point]]) -> Iterator[str]:
    for line in lines:
        corners = " ".join(f"{x},{y}" for x, y in map(axes.place, line))
        yield f'<polyline points="{corners}" fill="none" stroke="{SERIES["other thresholds"]}"/>'


def _marks(axes: Axes, series: Series) -> Iterator[str]:
    for name, found in series.items():
        for x, y in map(axes.place, (point for point in found if point[1] >= axes.low)):
            yield f'<circle cx="{x}" cy="{y}" r="4" fill="{SERIES[name]}" fill-opacity="0.7"/>'


def _legend(series: Series, axes: Axes) -> Iterator[str]:
    below = sum(y < axes.low for found in series.values() for _, y in found)
    if below:
        x, y = _WIDTH - _RIGHT + 16, _HEIGHT - _BOTTOM
        yield f'<text x="{x}" y="{y}" fill="#666666">{below} controls below</text>'
    for row, name in enumerate(name for name in SERIES if series.get(name)):
        color = SERIES[name]
        x, y = _WIDTH - _RIGHT + 16, _TOP + 16 + 20 * row
        yield f'<circle cx="{x}" cy="{y}" r="4" fill="{color}"/><text x="{x + 10}" y="{y + 4}">{name}</text>'


def write_all(results: dict[Key, list[Result]], folder: Path = FOLDER) -> list[Path]:
    """``<network>-<method>.svg`` for every pair; their paths."""
    written: list[Path] = []
    for network, method in sorted({key[:2] for key in results}):
        runs = [run for key, found in results.items() if key[:2] == (network, method) for run in found]
        path = folder / f"{network}-{method}.svg"
        path.write_text(figure(f"Fashion-MNIST, {network}, {method}", points(runs), curves(runs)))
        written.append(path)
    return written


if __name__ == "__main__":
    write_all(read())
