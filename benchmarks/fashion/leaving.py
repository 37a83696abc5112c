"""What a trained model with early exits achieves: each exit alone, nobody leaving, thresholds between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import dyncompile as dc
from benchmarks.fashion.data import Data, Split
from dyncompile.train.calibrate_exit import Leaving, outcomes

_GRID = 12
"""Steps of the curve: thresholds that evenly many more validation samples pass."""


@torch.no_grad()
def stages(dyn: dc.DynamicModel, split: Split) -> list[dict[str, Any]]:
    """Everybody at one exit, for each of them and for none: accuracy and MACs, decisions included."""
    return [_stage(dyn, split, way) for way in (*dyn.exits, None)]


def _stage(dyn: dc.DynamicModel, split: Split, way: str | None) -> dict[str, Any]:
    right, spent = 0, 0.0
    for images, labels in split.chunks():
        output, route = dyn.run(images, policy=Leaving(way))
        right += int((output.argmax(1) == labels).sum())
        spent += float(dyn.spent(route).sum())
    count = len(split.labels)
    return {"label": way or "nobody", "share": spent / count / dyn.static_macs, "accuracy": right / count}


def blind(rows: Sequence[dict[str, Any]], left: Sequence[float]) -> dict[str, Any]:
    """Expected accuracy when as many samples leave at each exit, whichever they are."""
    shares = [*left, 1 - sum(left)]
    expected = sum(share * row["accuracy"] for share, row in zip(shares, rows, strict=True))
    return {"accuracy": expected, "sd": 0.0, "draws": 0}


def left(dyn: dc.DynamicModel, route: dc.Route) -> list[float]:
    """Part of the samples that leave at each exit; later exits only count those that are still there."""
    gone = torch.zeros(len(next(iter(route.values()))), dtype=torch.bool)
    found: list[float] = []
    for name in dyn.exits:
        here = (route[name][:, 0] > 0) & ~gone
        gone |= here
        found.append(float(here.float().mean()))
    return found


def curve(dyn: dc.DynamicModel, data: Data) -> list[dict[str, float]]:
    """Thresholds from validation images, and what each does to test images."""
    known, asked = (outcomes(dyn, split.chunks()) for split in (data.validation, data.test))
    found: list[dict[str, float]] = []
    for part in range(_GRID + 1):
        threshold = float(known.sure.max(1).values.quantile(part / _GRID))
        accuracy, share = asked.at(threshold)
        found.append({"threshold": threshold, "accuracy": accuracy, "share": share})
    return found
