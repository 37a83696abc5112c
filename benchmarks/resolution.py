"""Real time of a batch in which every image has its own size, against each size alone at its row count.

ideal = sum over sizes of the time of the static network at that size on the rows that take it. The time of
the predictor is apart: decisions are forced, uniformly mixed.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import dyncompile as dc
from benchmarks.record import write
from dyncompile import zoo

MODEL = "torchvision:resnet50"
SIZES = (112, 168)
ROUNDS = {8: 7, 32: 5}


def run() -> dict[str, Any]:
    """Time of forced uniform mixtures over the ideal, and of the predictor over the mixture."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    source = zoo.load(MODEL)
    dyn = dc.dynamize(source.model, f"resolution(sizes={SIZES})", source.args).eval()
    width = dyn.choices["resolution"].width
    statics = [dc.specialize(dyn, dyn.route(column)) for column in range(width)]
    with torch.inference_mode():
        rows = {f"batch {batch}": _measure(dyn, statics, batch, rounds) for batch, rounds in ROUNDS.items()}
    meaning = "seconds, medians of interleaved rounds; a third of the rows at each size, shuffled"
    write("resolution", {"model": MODEL, "sizes": [*SIZES, 224], "batches": rows, "meaning": meaning})
    return {
        name: f"{found['mixed_over_ideal']:.3f} of the ideal, predictor {found['predictor_over_mixed']:.1%}"
        for name, found in rows.items()
    }


def _measure(dyn: dc.DynamicModel, statics: list[Any], batch: int, rounds: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, 224, 224, generator=generator)
    columns = torch.arange(batch)[torch.randperm(batch, generator=generator)] % len(statics)
    route = {"resolution": torch.nn.functional.one_hot(columns, len(statics)).float()}
    parts: list[Tensor] = [x[columns == column] for column in range(len(statics))]
    runs: dict[str, Callable[[], Any]] = {
        "mixed": lambda: dyn.run(x, policy=dc.Forced(route)),
        "ideal": lambda: [static(part) for static, part in zip(statics, parts, strict=True)],
        "native": lambda: dyn.run(x, policy=dc.Full()),
        "learned, all native": lambda: dyn.run(x, policy=dc.Learned()),
    }
    times = _interleaved(runs, rounds)
    predictor = times["learned, all native"] - times["native"]
    return {
        **times,
        "predictor": predictor,
        "mixed_over_ideal": times["mixed"] / times["ideal"],
        "mixed_over_native": times["mixed"] / times["native"],
        "macs_of_mixed": float(dyn.macs(route).mean()) / dyn.static_macs,
        "predictor_over_mixed": predictor / times["mixed"],
    }


def _interleaved(runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each; a round runs all of them once, the first round is not counted."""
    seen: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, call in runs.items():
            start = time.process_time()
            call()
            seen[name].append(time.process_time() - start)
    return {name: statistics.median(found[1:]) for name, found in seen.items()}
