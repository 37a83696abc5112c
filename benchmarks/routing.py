"""Real time of mixed routes: every alternative of every connection takes an equal share of the samples.

ideal = sum over alternatives of the time of the static network that has it everywhere, at its share of rows
ratio = time of the mixed batch / ideal;   "apart": connections deal the rows independently of each other
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

import dyncompile as dc
from benchmarks.sweep import Place, Sweep
from dyncompile import zoo
from dyncompile.latency import compare

RESNET, VIT = "timm:resnet18", "timm:vit_tiny_patch16_224"
METHOD = "routing(candidates=('identity', 'narrow', 'lowrank'))"
PLAN = ((RESNET, 32, 7), (VIT, 32, 3), (RESNET, 128, 3), (VIT, 128, 3))
"""Models, batch sizes, pairs of runs. What has been measured is written at once: the last ones take long."""
SIZE = {RESNET: 64}
"""Sides of images, where they are not the model's own."""


def run() -> dict[str, Any]:
    """Time over the ideal at every batch, and the source's overhead at full capacity."""
    return lines(SWEEP.run())


def missing() -> dict[str, Any]:
    """The same, leaving out batches that have results."""
    return lines(SWEEP.missing())


def lines(results: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Figures, one line per model, batch and mixture."""
    return {
        f"{name} {row}": f"{found['cpu']['median']:.3f}"
        for name, rows in results.items()
        for row, found in rows.items()
    }


def measure(name: str, batch: int, pairs: int) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Ratios of one model at one batch size, by model and what was run."""
    model = zoo.load(name).model.eval()
    size = SIZE.get(name, 224)
    dyn = dc.dynamize(model, METHOD, torch.randn(2, 3, size, size)).eval()
    x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        full = compare(lambda: dyn.run(x, policy=dc.Full()), lambda: model(x), pairs)
        yield (name, f"full, batch {batch}"), asdict(full)
        for label, apart in (("together", False), ("apart", True)):
            yield (name, f"{label}, batch {batch}"), asdict(_mixed(dyn, x, pairs, apart=apart))


SWEEP = Sweep(
    "routing",
    "models",
    plan=lambda: PLAN,
    last=lambda step: (step[0], f"apart, batch {step[1]}"),
    measure=lambda step: measure(*step),
    facts={
        "meaning": "time of a batch of mixed routes over the sum of static networks at their rows; full: "
        "over the source",
        "method": METHOD,
    },
)


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
