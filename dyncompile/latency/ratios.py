"""Time of one function relative to another, on a machine that others use too.

Absolute times drift with the load. So the two run in turns within one process, and what is reported is the
median of the ratios of neighboring runs; the quartiles say how much to believe it. CPU time counts only what
this process computed: where it disagrees with wall time, the machine was busy with something else.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

_WARM_UP = 3


@dataclass(frozen=True, slots=True)
class Ratio:
    """Median and quartiles of pairwise ratios of times."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ratios: list[float]) -> Ratio:
        """From at least one ratio."""
        if len(ratios) == 1:
            return cls(ratios[0], ratios[0], ratios[0])
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Time of a function over that of the reference: wall clock, and CPU time of this process."""

    wall: Ratio
    cpu: Ratio
    pairs: int


def compare(run: Callable[[], object], reference: Callable[[], object], pairs: int) -> Comparison:
    """Time `run` against `reference` in interleaved pairs; which one goes first alternates."""
    for _ in range(_WARM_UP):
        run()
        reference()
    wall: list[float] = []
    cpu: list[float] = []
    for pair in range(pairs):
        if pair % 2:
            base, own = _timed(reference), _timed(run)
        else:
            own, base = _timed(run), _timed(reference)
        wall.append(own[0] / base[0])
        cpu.append(own[1] / base[1])
    return Comparison(Ratio.of(wall), Ratio.of(cpu), pairs)


def _timed(run: Callable[[], object]) -> tuple[float, float]:
    """(wall, CPU) seconds of one call."""
    wall, cpu = time.perf_counter_ns(), time.process_time_ns()
    run()
    return (time.perf_counter_ns() - wall) / 1e9, max(time.process_time_ns() - cpu, 1) / 1e9
