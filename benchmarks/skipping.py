"""Real time of skipped branches: L-Net at forced rates, where every sample skips branches of its own.

ideal saving = share of MACs removed;   realized = (1 - time of dynamic / time of source) / ideal

A fraction of MACs is not the same fraction of time: a branch of late, small maps costs more time per MAC than
an early one, so realized savings of a single drawn route scatter around 1 even for static networks.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

import dyncompile as dc
from benchmarks.record import write
from dyncompile import zoo
from dyncompile.latency import compare

RESNET, VIT = "torchvision:resnet50", "timm:vit_base_patch16_224"
RATES = (0.0, 0.25, 0.5, 0.75)
PLAN = ((RESNET, 1, 15), (RESNET, 8, 7), (VIT, 1, 9), (RESNET, 32, 3), (VIT, 8, 3), (VIT, 32, 3))
"""Models, batch sizes, pairs of runs. What has been measured is written at once: the last ones take long."""


def run() -> dict[str, Any]:
    """Time over the source's at every rate and batch, with the share of MACs and the realized saving."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    meaning = (
        "evaluation time over the source's; samples skip branches drawn at random, each its own; "
        "deployed: batch norms folded into convolutions (the source's are not)"
    )
    results: dict[str, dict[str, Any]] = {}
    for name, batch, pairs in PLAN:
        for label, found in _measure(name, batch, pairs):
            results.setdefault(name, {})[label] = found
            write("skipping", {"models": results, "meaning": meaning})
    return {
        f"{name} {row}": f"{found['macs']:.3f} MACs, {found['time']['cpu']['median']:.3f} time"
        + (f", {found['realized']:.0%} of the ideal" if "realized" in found else "")
        for name, rows in results.items()
        for row, found in rows.items()
    }


def _measure(name: str, batch: int, pairs: int) -> Iterator[tuple[str, dict[str, Any]]]:
    source = zoo.load(name)
    model, image = source.model.eval(), source.args[0][:1]
    dyn = dc.dynamize(model, "lcnet(channels=False)", source.args).eval()
    x = torch.randn(batch, *image.shape[1:], generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for kind, one in (("deployed", dc.deploy(dyn)), ("plain", dyn)):
            macs = 1 + dyn.decision_macs / dyn.static_macs
            yield f"gates, all kept, batch {batch}, {kind}", _over(one, model, x, dc.Learned(), macs, pairs)
            for rate in RATES:
                route = skipping(dyn, rate, batch)
                macs = float(dyn.macs(route).mean()) / dyn.static_macs
                found = _over(one, model, x, dc.Forced(route), macs, pairs)
                yield f"skip {rate:.0%}, batch {batch}, {kind}", found


def _over(
    dyn: dc.DynamicModel, model: nn.Module, x: Tensor, policy: dc.Policy, macs: float, pairs: int
) -> dict[str, Any]:
    time = compare(lambda: dyn.run(x, policy=policy), lambda: model(x), pairs)
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
