"""Candidates that run in turns, in CPU time, and the quartiles of their ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from dyncompile.latency import Ratio

Runs = Mapping[str, Callable[[], object]]
Times = Mapping[str, Sequence[float]]


def times(runs: Runs, rounds: int, *, warm: int = 1) -> Times:
    """CPU seconds of each candidate in every round, after `warm` that do not count; order alternates."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for turn in range(-warm, rounds):
            names = list(runs) if turn % 2 else list(runs)[::-1]
            for name in names:
                start = time.process_time_ns()
                runs[name]()
                if turn >= 0:
                    found[name].append((time.process_time_ns() - start) / 1e9)
    return found


def over(measured: Times, one: str, base: str) -> dict[str, Any]:
    """Quartiles of the ratios within rounds, and the median time of `one`."""
    pairs = zip(measured[one], measured[base], strict=True)
    seconds = statistics.median(measured[one])
    return {**quartiles([a / b for a, b in pairs]), "rounds": len(measured[one]), "seconds": seconds}


def quartiles(ratios: list[float]) -> dict[str, float]:
    """Median and quartiles by name."""
    return asdict(Ratio.of(ratios))
