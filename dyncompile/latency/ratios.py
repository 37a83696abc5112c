"""Time of one function relative to another, on a machine that others use too.

Absolute times drift with the load. So the two run in turns within one process, and what is reported is the
median of the ratios of neighboring runs; the quartiles say how much to believe it. CPU time counts only what
this process computed: where it disagrees with wall time, the machine was busy with something else.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
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


@dataclass(frozen=True, slots=True)
class Times:
    """Wall and CPU seconds of one function, round by round."""

    wall: list[float]
    cpu: list[float]

    def over(self, reference: Times) -> Comparison:
        """By ratios within rounds."""
        wall, cpu = (
            Ratio.of([a / b for a, b in zip(own, base, strict=True)])
            for own, base in ((self.wall, reference.wall), (self.cpu, reference.cpu))
        )
        return Comparison(wall, cpu, len(self.cpu))


def time_in_turns(
    runs: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = _WARM_UP
) -> dict[str, Times]:
    """Time functions one after the other, round by round; every other round runs in the opposite order."""
    found = {name: Times([], []) for name in runs}
    order = [*runs]
    for turn in range(-warm_up, rounds):
        for name in order[::-1] if turn % 2 else order:
            wall, cpu = _timed(runs[name])
            if turn >= 0:
                found[name].wall.append(wall)
                found[name].cpu.append(cpu)
    return found


def compare(run: Callable[[], object], reference: Callable[[], object], pairs: int) -> Comparison:
    """Time `run` against `reference` in interleaved pairs; which one goes first alternates."""
    found = time_in_turns({"run": run, "reference": reference}, pairs)
    return found["run"].over(found["reference"])


def _timed(run: Callable[[], object]) -> tuple[float, float]:
    """(wall, CPU) seconds of one call."""
    wall, cpu = time.perf_counter_ns(), time.process_time_ns()
    run()
    return (time.perf_counter_ns() - wall) / 1e9, max(time.process_time_ns() - cpu, 1) / 1e9
