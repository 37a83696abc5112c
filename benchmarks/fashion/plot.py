"""Accuracy against MACs as SVG, one figure per network: a few lines, so that it takes no plotting library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fashion.summary import FOLDER, Key, Result, read

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 640, 420, 60, 40, 150, 50
SERIES = {
    "learned": "#0b62a4",
    "other thresholds": "#8fb8de",
    "static": "#c0392b",
    "fixed routes": "#7f8c8d",
    "random routes": "#e67e22",
    "full": "#27ae60",
}
Point = tuple[float, float]
"""Share of MACs, accuracy."""


@dataclass(frozen=True, slots=True)
class Axes:
    """Maps shares in [0, 1.05] and accuracies in [low, high] to pixels."""

    low: float
    high: float

    def place(self, point: Point) -> Point:
        """Pixels from the left and from the top."""
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * point[0] / 1.05
        y = _TOP + (_HEIGHT - _TOP - _BOTTOM) * (self.high - point[1]) / (self.high - self.low)
        return round(x, 1), round(y, 1)


def points(runs: Sequence[Result]) -> dict[str, list[Point]]:
    """What every run contributes to each series."""
    series: dict[str, list[Point]] = {name: [] for name in SERIES}
    for run in runs:
        dynamic = run["dynamic"]
        series["learned"].append((dynamic["share"], dynamic["accuracy"]))
        series["random routes"].append((dynamic["path_share"], run["random"]["accuracy"]))
        series["fixed routes"] += [(row["share"], row["accuracy"]) for row in run["fixed"]]
        series["other thresholds"] += [(row["share"], row["accuracy"]) for row in run.get("curve", ())]
        series["static"].append((run["static"][0]["share"], run["static"][0]["accuracy"]))
        series["full"] += [(row["share"], row["accuracy"]) for row in (run["source"], run["static"][1])]
    return series


def figure(title: str, series: dict[str, list[Point]]) -> str:
    """An SVG document."""
    values = [y for found in series.values() for _, y in found]
    margin = max(0.002, (max(values) - min(values)) / 20)
    axes = Axes(min(values) - margin, max(values) + margin)
    body = "\n".join((*_frame(title, axes), *_marks(axes, series), *_legend(series)))
    size = f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    return f'{head}\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'


def _frame(title: str, axes: Axes) -> Iterator[str]:
    yield f'<text x="{_LEFT}" y="22" font-size="14">{title}</text>'
    for percent in range(0, 101, 20):
        x, y = axes.place((percent / 100, axes.low))
        yield f'<line x1="{x}" y1="{_TOP}" x2="{x}" y2="{y}" stroke="#eeeeee"/>'
        yield f'<text x="{x}" y="{y + 18}" text-anchor="middle">{percent}</text>'
    for step in range(6):
        value = axes.low + (axes.high - axes.low) * step / 5
        x, y = axes.place((0, value))
        yield f'<line x1="{x}" y1="{y}" x2="{_WIDTH - _RIGHT}" y2="{y}" stroke="#eeeeee"/>'
        yield f'<text x="{x - 6}" y="{y + 4}" text-anchor="end">{100 * value:.1f}</text>'
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    yield f'<text x="{middle}" y="{_HEIGHT - 10}" text-anchor="middle">MACs, % of the source</text>'
    yield f'<text x="14" y="{_HEIGHT / 2}" transform="rotate(-90 14 {_HEIGHT / 2})">test accuracy, %</text>'


def _marks(axes: Axes, series: dict[str, list[Point]]) -> Iterator[str]:
    for name, found in series.items():
        for x, y in map(axes.place, found):
            yield f'<circle cx="{x}" cy="{y}" r="4" fill="{SERIES[name]}" fill-opacity="0.7"/>'


def _legend(series: dict[str, list[Point]]) -> Iterator[str]:
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
        path.write_text(figure(f"Fashion-MNIST, {network}, {method}", points(runs)))
        written.append(path)
    return written


if __name__ == "__main__":
    write_all(read())
