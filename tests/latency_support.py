"""A clock that counts MACs, and small dynamic models to time with it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import dyncompile as dc
from dyncompile.latency import Latency


class MacsClock:
    """A device that takes a nanosecond per multiply-accumulate, and `overhead` per mark."""

    name: ClassVar[str] = "macs"

    def __init__(self) -> None:
        self.counter = FlopCounterMode(display=False)

    def mark(self) -> int:
        return self.counter.get_total_flops() // 2

    def seconds(self, start: int, end: int) -> float:
        return (end - start) * 1e-9


def timed(dyn: dc.DynamicModel, folder: Path, batch: int = 2, **more: object) -> Latency:
    """`dyn` on that device."""
    clock = MacsClock()
    with clock.counter:
        return Latency(dyn, batch=batch, clock=clock, cache=folder, rounds=1, **more)  # pyright: ignore


class Residual(nn.Module):
    def __init__(self, width: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def residual_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), Residual(8), Residual(8),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(), Residual(16), Residual(16),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip


NETS = {
    "widths": "dsnet(divisor=1, minimum=1)",
    "stages": "dsnet(divisor=1, minimum=1, per='stage')",
    "blocks": "dsnet(divisor=1, minimum=1, per='block')",
    "dims": "dsnet(divisor=1, minimum=1, per='dim', gate=False)",
    "depth": "dsnet(divisor=1, minimum=1, ratios=(0.5, 1.0), depth=(0.5, 1.0))",
    "layers": "lcnet(channels=False)",
    "routing": "routing",
    "exits": "exits",
    "resolution": "resolution(sizes=(8, 16))",
    "both": "resolution(sizes=(8, 16)) | lcnet(channels=False)",
}


@cache
def _made(name: str) -> dc.DynamicModel:
    passes = NETS[name].split(" | ")
    return dc.dynamize(residual_net(), passes, torch.randn(2, 3, 16, 16)).eval()


def cached(name: str) -> dc.DynamicModel:
    """A dynamic model by name, shared by the tests of a process: leave it as it is."""
    return _made(name)


def random_routes(dyn: dc.DynamicModel, count: int) -> Iterator[dc.Route]:
    """The full and the smallest route, then random ones, each of 4 rows."""
    policies = [dc.Full(), dc.Smallest(), *(dc.Sampled(seed, per_sample=True) for seed in range(count))]
    for policy in policies:
        yield {name: policy.decide(choice, 4, None) for name, choice in dyn.choices.items()}
