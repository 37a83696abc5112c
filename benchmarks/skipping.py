"""Real time of skipped branches: L-Net at forced rates, where every sample skips branches of its own.

ideal saving = share of MACs removed;   realized = (1 - time of dynamic / time of source) / ideal
"""

from __future__ import annotations

import warnings
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

import dyncompile as dc
from benchmarks.record import write
from dyncompile import zoo
from dyncompile.latency import compare

MODELS = ("torchvision:resnet50", "timm:vit_base_patch16_224")
RATES = (0.0, 0.25, 0.5, 0.75)
PAIRS = {1: 15, 8: 7, 32: 5}


def run() -> dict[str, Any]:
    """Time over the source's at every rate and batch, with the share of MACs and the realized saving."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results = {name: _measure(name) for name in MODELS}
    meaning = "evaluation time over the source's; samples skip branches drawn at random, each its own"
    write("skipping", {"models": results, "meaning": meaning})
    return {
        f"{name} {row}": f"{found['macs']:.3f} MACs, {found['time']['cpu']['median']:.3f} time"
        + (f", {found['realized']:.0%} of the ideal" if "realized" in found else "")
        for name, rows in results.items()
        for row, found in rows.items()
    }


def _measure(name: str) -> dict[str, Any]:
    source = zoo.load(name)
    model, image = source.model.eval(), source.args[0][:1]
    dyn = dc.dynamize(model, "lcnet(channels=False)", source.args).eval()
    rows: dict[str, Any] = {}
    with torch.inference_mode():
        for batch, pairs in PAIRS.items():
            x = torch.randn(batch, *image.shape[1:], generator=torch.Generator().manual_seed(0))
            time = compare(lambda x=x: dyn.run(x, policy=dc.Learned()), lambda x=x: model(x), pairs)
            macs = 1 + dyn.decision_macs / dyn.static_macs
            rows[f"gates, all kept, batch {batch}"] = {"macs": macs, "time": asdict(time)}
            for rate in RATES:
                rows[f"skip {rate:.0%}, batch {batch}"] = _at(dyn, model, x, rate, pairs)
    return rows


def _at(dyn: dc.DynamicModel, model: torch.nn.Module, x: Tensor, rate: float, pairs: int) -> dict[str, Any]:
    route = skipping(dyn, rate, len(x))
    time = compare(lambda: dyn.run(x, policy=dc.Forced(route)), lambda: model(x), pairs)
    macs = float(dyn.macs(route).mean()) / dyn.static_macs
    found: dict[str, Any] = {"macs": macs, "time": asdict(time)}
    if macs < 1:
        found["realized"] = (1 - time.cpu.median) / (1 - macs)
    return found


def skipping(dyn: dc.DynamicModel, rate: float, rows: int, seed: int = 0) -> dc.Route:
    """Every row skips this share of the branches, drawn for itself."""
    generator = torch.Generator().manual_seed(seed)
    names = list(dyn.choices)
    kept = torch.ones(rows, len(names))
    for row in kept:
        row[torch.randperm(len(names), generator=generator)[: round(rate * len(names))]] = 0
    return {name: kept[:, i : i + 1] for i, name in enumerate(names)}
