"""Accuracy against MACs as SVG, one figure per network and method."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.fashion.summary import FOLDER, Key, Result, read
from dyncompile.report.charts import Axis
from dyncompile.report.charts import Series as Drawn
from dyncompile.report.figure import figure as drawn_figure
from dyncompile.report.figure import kind

SERIES = {
    "learned": "#0b62a4",
    "other thresholds": "#8fb8de",
    "one exit for all": "#8e44ad",
    "nobody leaves": "#2c3e50",
    "static": "#c0392b",
    "static, taught": "#f1948a",
    "fixed routes": "#7f8c8d",
    "random routes": "#e67e22",
    "full": "#27ae60",
}
Point = tuple[float, float]
"""Share of MACs, accuracy."""

CONTROLS = ("fixed routes", "random routes")

Series = dict[str, list[Point]]


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
        series["static, taught"] += _of([run["static, taught"]] if "static, taught" in run else ())
        series["full"] += _of((run["source"], run["static"][1]))
    return series


def _of(rows: Iterable[Result]) -> list[Point]:
    return [(row["share"], row["accuracy"]) for row in rows]


def curves(runs: Sequence[Result]) -> list[list[Point]]:
    """What thresholds of early exits give, one line per run that has any, from the cheapest on."""
    return [sorted(_of(run["curve"])) for run in runs if "curve" in run]


def figure(title: str, series: Series, lines: Sequence[Sequence[Point]] = ()) -> str:
    """An SVG document."""
    x, y = _axes(series)
    shown = {name: color for name, color in SERIES.items() if series.get(name)}
    drawn = [Drawn(kind([*shown].index("other thresholds")), line, dots=False) for line in lines]
    for n, name in enumerate(shown):
        inside = [point for point in series[name] if point[1] >= y.low]
        drawn.append(Drawn(kind(n), inside, joined=False))
    below = sum(value < y.low for found in series.values() for _, value in found)
    return drawn_figure(title, x, y, drawn, shown, f"{below} controls below" if below else "")


def _axes(series: Series) -> tuple[Axis, Axis]:
    """Room for every series; controls at chance are left out where they would flatten all else."""
    right = 1.05 * max(1.0, *(x for found in series.values() for x, _ in found))
    values = [y for found in series.values() for _, y in found]
    kept = [y for name, found in series.items() if name not in CONTROLS for _, y in found] or values
    span = max(0.02, max(kept) - min(kept))
    low, high = max(min(values), min(kept) - 2 * span), max(values)
    margin = max(0.002, (high - low) / 20)
    return (
        Axis("MACs, share of the source's", 0.0, right, percent=True),
        Axis("test accuracy", low - margin, high + margin, percent=True),
    )


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
