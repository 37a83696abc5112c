"""Real time of mixed routes: every alternative of every connection takes an equal share of the samples.

ideal = sum over alternatives of the time of the static network that has it everywhere, at its share of rows
ratio = time of the mixed batch / ideal;   "apart": connections deal the rows independently of each other
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

MODELS = ("timm:resnet18", "timm:vit_tiny_patch16_224")
METHOD = "routing(candidates=('identity', 'narrow', 'lowrank'))"
PAIRS = {32: 7, 128: 3}
SIZE = {"timm:resnet18": 64}
"""Sides of images, where they are not the model's own."""


def run() -> dict[str, Any]:
    """Time over the ideal at every batch, and the source's overhead at full capacity."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results = {name: measure(name) for name in MODELS}
    meaning = (
        "time of a batch of mixed routes over the sum of static networks at their rows; full: over the source"
    )
    write("routing", {"models": results, "meaning": meaning, "method": METHOD})
    return {
        f"{name} {row}": f"{found['cpu']['median']:.3f}"
        for name, rows in results.items()
        for row, found in rows.items()
    }


def measure(name: str, pairs: dict[int, int] = PAIRS) -> dict[str, Any]:
    """Ratios of one model by batch size."""
    source = zoo.load(name)
    model, image = source.model.eval(), source.args[0][:1]
    size: int = SIZE.get(name) or int(image.shape[-1])
    dyn = dc.dynamize(model, METHOD, torch.randn(2, 3, size, size)).eval()
    rows: dict[str, Any] = {}
    with torch.inference_mode():
        for batch, count in pairs.items():
            x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
            full = compare(lambda x=x: dyn.run(x, policy=dc.Full()), lambda x=x: model(x), count)
            rows[f"full, batch {batch}"] = asdict(full)
            for label, apart in (("together", False), ("apart", True)):
                rows[f"{label}, batch {batch}"] = asdict(_mixed(dyn, x, count, apart=apart))
    return rows


def _mixed(dyn: dc.DynamicModel, x: Tensor, pairs: int, *, apart: bool) -> Any:
    route = uniform(dyn, len(x), apart=apart)
    width = max(choice.width for choice in dyn.choices.values())
    counts = [len(part) for part in torch.arange(len(x)).tensor_split(width)]
    statics = [
        dc.specialize(dyn, {c.name: torch.tensor([c.row(min(k, c.width - 1))]) for c in dyn.choices.values()})
        for k in range(width)
    ]
    parts = list(x.split(counts))

    def ideal() -> None:
        for static, part in zip(statics, parts, strict=True):
            static(part)

    return compare(lambda: dyn.run(x, policy=dc.Forced(route)), ideal, pairs)


def uniform(dyn: dc.DynamicModel, rows: int, *, apart: bool, seed: int = 0) -> dc.Route:
    """One-hot rows, equally many per alternative; the same at all connections, or dealt anew at each."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(rows, generator=generator)
    found: dict[str, Tensor] = {}
    for choice in dyn.choices.values():
        if apart:
            order = torch.randperm(rows, generator=generator)
        columns = order * choice.width // rows
        found[choice.name] = torch.nn.functional.one_hot(columns, choice.width).float()
    return found
