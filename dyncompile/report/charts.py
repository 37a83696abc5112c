"""Plots as inline SVG, without a library: points, lines, axes with round numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import chain, repeat
from math import log10

WIDTH, HEIGHT = 720, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 28, 34, 50
_Box = tuple[float, float, float]
"""Left and right end of a label, and its base line."""
_LETTER = 11
"""Width of a letter where the window is narrow and letters are largest."""


@dataclass(frozen=True, slots=True)
class Series:
    """Points, `joined` in their order, with labels above them, or `below`; `kind` is a style class.

    `spans` are (low, high) through the points, `titles` what is said to who points at them.
    """

    kind: str
    points: Sequence[tuple[float, float]]
    labels: Sequence[str] = ()
    dots: bool = True
    joined: bool = True
    below: bool = False
    spans: Sequence[tuple[float, float]] = ()
    titles: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Axis:
    """What is shown, from where to where, and whether in percent; `decades` are equally long ones."""

    name: str
    low: float
    high: float
    percent: bool = False
    decades: bool = False

    def at(self, value: float) -> float:
        """Where a value stands: 0 is the low end, 1 the high one."""
        low, high, value = (log10(v) if self.decades else v for v in (self.low, self.high, value))
        return (value - low) / ((high - low) or 1)

    @property
    def ticks(self) -> list[float]:
        """Four to eight round numbers, or all powers of ten."""
        if self.decades:
            return [10.0**n for n in range(math.ceil(log10(self.low)), math.floor(log10(self.high)) + 1)]
        span = self.high - self.low or 1.0
        power = 10.0 ** math.floor(math.log10(span / 4))
        step = next(power * n for n in (1, 2, 2.5, 5, 10) if span / (power * n) <= 7)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def said(self, value: float) -> str:
        """A tick in words."""
        return f"{100 * value:g} %" if self.percent else f"{value:,g}"


def around(name: str, values: Sequence[float], *, percent: bool = False, zero: bool = False) -> Axis:
    """An axis with some room around `values`, which are finite; with `zero` it begins there.

    Shares end at 100 % at most.
    """
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = (high - low) * 0.12 or abs(high) * 0.05 or 0.05
    top = min(high + room, 1.0) if percent and high <= 1 else high + room
    return Axis(name, 0.0 if zero else max(low - room, 0.0) if percent else low - room, top, percent)


def plot(x: Axis, y: Axis, series: Sequence[Series], marks: Sequence[tuple[float, str]] = ()) -> str:
    """The drawing as a part of a page; `marks` are vertical lines with a word each."""
    names = escape(f"{y.name} against {x.name}", quote=True)
    return (
        f"<div class='wide'><svg class='plot' viewBox='0 0 {WIDTH} {HEIGHT}' role='img' "
        f"aria-label='{names}'>"
        f"{drawing(x, y, series, marks)}</svg></div>"
    )


def drawing(x: Axis, y: Axis, series: Sequence[Series], marks: Sequence[tuple[float, str]] = ()) -> str:
    """What stands inside an SVG of `WIDTH` by `HEIGHT`."""
    frame = _Frame(x, y)
    parts = [*frame.axes(), *(frame.mark(at, word) for at, word in marks)]
    taken: list[_Box] = []
    return "".join((*parts, *(part for one in series for part in frame.series(one, taken))))


def _free(label: str, x: float, y: float, below: bool, taken: list[_Box]) -> float:
    """The base line of a label at a point: above or below it, further away where others lie."""
    width = _LETTER * len(label)
    left = x - width if x > WIDTH - 100 else x
    places = (22, -10, 44, -32, 66) if below else (-10, 22, -32, 44, 66)
    apart = [
        y + down
        for down in places
        if all(left + width < start or end < left or abs(y + down - at) >= 21 for start, end, at in taken)
    ]
    taken.append((left, left + width, apart[0] if apart else y + places[0]))
    return taken[-1][2]


@dataclass(frozen=True, slots=True)
class _Frame:
    x: Axis
    y: Axis

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Coordinates of a point."""
        return (
            _LEFT + (WIDTH - _LEFT - _RIGHT) * self.x.at(x),
            HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * self.y.at(y),
        )

    def axes(self) -> Iterator[str]:
        """Grid, ticks, names."""
        base, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
        for value in self.y.ticks:
            _, at = self.place(self.x.low, value)
            yield f"<path class='grid' d='M{_LEFT} {at:.1f} H{right}'/>"
            yield f"<text class='faint end-at' x='{_LEFT - 8}' y='{at + 4:.1f}'>{self.y.said(value)}</text>"
        for value in self.x.ticks:
            at, _ = self.place(value, self.y.low)
            yield f"<text class='faint center' x='{at:.1f}' y='{base + 20}'>{self.x.said(value)}</text>"
        yield f"<path class='axis' d='M{_LEFT} {base} H{right}'/>"
        yield f"<text class='faint end-at' x='{right}' y='{base + 42}'>{escape(self.x.name)}</text>"
        yield f"<text class='faint' x='0' y='14'>{escape(self.y.name)}</text>"

    def mark(self, at: float, word: str) -> str:
        """A vertical line."""
        x, _ = self.place(at, self.y.low)
        return (
            f"<path class='grid' d='M{x:.1f} {_TOP} V{HEIGHT - _BOTTOM}'/>"
            f"<text class='faint' x='{x + 5:.1f}' y='{_TOP - 6}'>{escape(word)}</text>"
        )

    def series(self, one: Series, taken: list[_Box]) -> Iterator[str]:
        """A line, its points, their labels, where none of those in `taken` lies; they are added there."""
        places = [self.place(x, y) for x, y in one.points]
        if one.joined and len(places) > 1:
            way = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            yield f"<polyline class='line {one.kind}' points='{way}'/>"
        for (x, _), span in zip(one.points, one.spans, strict=False):
            (at, low), (_, high) = (self.place(x, value) for value in span)
            yield f"<path class='line {one.kind}' d='M{at:.1f} {low:.1f} V{high:.1f}'/>"
        if one.dots:
            yield from map(self._dot, repeat(one.kind), places, chain(one.titles, repeat("")))
        for label, (x, y) in zip(one.labels, places, strict=False):
            if label:
                end, at = "end-at" if x > WIDTH - 100 else "", _free(label, x, y, one.below, taken)
                yield f"<text class='{end}' x='{x:.1f}' y='{at:.1f}'>{escape(label)}</text>"

    @staticmethod
    def _dot(kind: str, place: tuple[float, float], title: str) -> str:
        said = f"<title>{escape(title)}</title>" if title else ""
        return f"<circle class='point {kind}' cx='{place[0]:.1f}' cy='{place[1]:.1f}' r='5'>{said}</circle>"
