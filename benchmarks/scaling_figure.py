"""Seconds against nodes on two logarithmic axes, as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import log10
from typing import Any

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 640, 420, 60, 40, 230, 50
_X, _Y = (2.0, 4.2), (-1.0, 3.0)
"""Decades of nodes and of seconds."""
COLORS = ("#0b62a4", "#c0392b", "#27ae60", "#e67e22")


def place(nodes: float, seconds: float) -> tuple[float, float]:
    """Pixels from the left and from the top; what is out of range stands on the border."""
    x, y = (min(max(log10(v), low), high) for v, (low, high) in ((nodes, _X), (seconds, _Y)))
    return (
        round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * (x - _X[0]) / (_X[1] - _X[0]), 1),
        round(_TOP + (_HEIGHT - _TOP - _BOTTOM) * (_Y[1] - y) / (_Y[1] - _Y[0]), 1),
    )


def figure(rows: Sequence[dict[str, Any]]) -> str:
    """An SVG document: a line per network and method, dashed for the exports alone."""
    series: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["device"] == "cpu":
            series.setdefault(f"{row['network']}, {row['method']}", []).append(row)
    body = [*_frame()]
    for color, (label, found) in zip(COLORS, series.items(), strict=False):
        body += _line(found, "seconds", color, "")
        body += _line(found, "exports", color, ' stroke-dasharray="4 4"')
        x, y = _WIDTH - _RIGHT + 16, _TOP + 16 + 20 * list(series).index(label)
        body.append(f'<text x="{x}" y="{y}" fill="{color}">{label}</text>')
    size = f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    return "\n".join((head, '<rect width="100%" height="100%" fill="white"/>', *body, "</svg>", ""))


def _frame() -> Iterator[str]:
    yield f'<text x="{_LEFT}" y="22" font-size="14">Seconds of dynamize; dashed: of its two exports</text>'
    for decade in range(2, 5):
        x, bottom = place(10**decade, 10 ** _Y[0])
        yield f'<line x1="{x}" y1="{_TOP}" x2="{x}" y2="{bottom}" stroke="#eeeeee"/>'
        yield f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{10**decade:,}</text>'
    for decade in range(-1, 4):
        left, y = place(10 ** _X[0], 10.0**decade)
        yield f'<line x1="{left}" y1="{y}" x2="{_WIDTH - _RIGHT}" y2="{y}" stroke="#eeeeee"/>'
        yield f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{10.0**decade:g}</text>'
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    yield f'<text x="{middle}" y="{_HEIGHT - 10}" text-anchor="middle">nodes</text>'


def _line(rows: Sequence[dict[str, Any]], key: str, color: str, style: str) -> Iterator[str]:
    points = " ".join(",".join(map(str, place(row["nodes"], row[key]))) for row in rows)
    yield f'<polyline points="{points}" fill="none" stroke="{color}"{style}/>'
