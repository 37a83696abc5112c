"""Seconds against nodes on two logarithmic axes, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dyncompile.report.charts import Axis, Series
from dyncompile.report.figure import figure as drawn_figure
from dyncompile.report.figure import kind

COLORS = ("#0b62a4", "#c0392b", "#27ae60", "#e67e22")


def figure(rows: Sequence[Mapping[str, Any]]) -> str:
    """An SVG document: a line per network and method, dashed for the exports alone."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["device"] == "cpu":
            found.setdefault(f"{row['network']}, {row['method']}", []).append(row)
    lines = [
        Series(f"{kind(n)} {style}", [(row["nodes"], row[key]) for row in one], dots=False)
        for n, one in enumerate(found.values())
        for key, style in (("seconds", ""), ("exports", "dashed"))
    ]
    points = [point for line in lines for point in line.points]
    x, y = (_around(name, [point[i] for point in points]) for i, name in enumerate(("nodes", "seconds")))
    colors = dict(zip(found, COLORS, strict=False))
    return drawn_figure("Seconds of dynamize", x, y, lines, colors, "dashed: its two exports")


def _around(name: str, values: Sequence[float]) -> Axis:
    low, high = (min(values), max(values)) if values else (1.0, 10.0)
    return Axis(name, low / 1.3, 1.3 * high, decades=True)
