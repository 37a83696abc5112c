"""``python -m benchmarks multiscale``: three seeds, a summary and a figure of all that is there."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.fashion.plot import Point, figure
from benchmarks.fashion.summary import at_share
from benchmarks.multiscale.protocol import FOLDER, Effort, results, seed_results
from benchmarks.spread import spread

SEEDS = (0, 1, 2)
Result = dict[str, Any]


def run() -> dict[str, Any]:
    """Train and measure what is missing; accuracies in percent, means over seeds with their deviation."""
    torch.set_num_threads(1)
    for seed in SEEDS:
        seed_results(seed, Effort())
        (FOLDER / "multiscale.svg").write_text(
            figure("Products in scenes, sizes 32, 48, 64", points(results()))
        )
    return summary(results())


def summary(found: Sequence[Result]) -> dict[str, str]:
    """A line per fixed size and per budget."""
    lines = {"source": _percent(found, lambda one: one["source"]["accuracy"])}
    for k, row in enumerate(found[0]["fixed"]):
        scales = ", ".join(
            f"{name} {_percent(found, lambda one, k=k, name=name: one['fixed'][k]['by_scale'][name])}"
            for name in row["by_scale"]
        )
        lines[f"size {row['label']}, {row['share']:.1%} of the MACs"] = (
            f"{_percent(found, lambda one, k=k: one['fixed'][k]['accuracy'])} ({scales})"
        )
    for k, row in enumerate(found[0]["learned"]):
        lines[f"budget {row['target']:.0%}"] = _budget(found, k)
    return lines


def _budget(found: Sequence[Result], k: int) -> str:
    rows: list[Result] = [one["learned"][k] for one in found]
    mixed = [at_share(one["fixed"], one["learned"][k]["share"]) for one in found]
    native = {
        name: statistics.fmean(row["sizes_by_scale"][name][-1] for row in rows)
        for name in rows[0]["sizes_by_scale"]
    }
    return (
        f"{_percent(rows, lambda row: row['accuracy'])} at {statistics.fmean(r['share'] for r in rows):.1%}; "
        f"same mix at random {_percent(rows, lambda row: row['random']['accuracy'])}; "
        f"fixed sizes at these MACs {spread([100 * one for one in mixed])}; "
        f"native size taken by {', '.join(f'{name} {share:.0%}' for name, share in native.items())}"
    )


def points(found: Sequence[Result]) -> dict[str, list[Point]]:
    """What every seed contributes to each series of the figure."""
    return {
        "learned": [(row["share"], row["accuracy"]) for one in found for row in one["learned"]],
        "random routes": [
            (row["path_share"], row["random"]["accuracy"]) for one in found for row in one["learned"]
        ],
        "fixed routes": [(row["share"], row["accuracy"]) for one in found for row in one["fixed"]],
        "full": [(1.0, one["source"]["accuracy"]) for one in found],
    }


def _percent(found: Sequence[Any], of: Callable[[Any], float]) -> str:
    return spread([100 * of(one) for one in found])
