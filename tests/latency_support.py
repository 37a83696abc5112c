"""Clocks that count work instead of time, and small dynamic models to time with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._C import DispatchKey
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import dyncompile as dc
from dyncompile.latency import Latency

NANO = 1e-9


class WorkClock(TorchDispatchMode):
    """A device that takes `per_mac` ns for a multiply-accumulate, and `per_call` for calling an operator.

    `per_other` is that of operators that multiply nothing; `prices` are those of a MAC of some operators.
    """

    name: ClassVar[str] = "work"

    def __init__(
        self,
        per_mac: int = 1,
        per_call: int = 0,
        per_other: int = 0,
        prices: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self._per_mac, self._per_call, self._per_other = per_mac, per_call, per_other
        self._prices = prices or {}
        self.done = self.marks = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd):
            with self:  # inference mode shows whole operators, not what they are made of
                return func.decompose(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        self.done += self._per_call
        packet = func._overloadpacket
        if packet in flop_registry:
            macs = flop_registry[packet](*args, **(kwargs or {}), out_val=out) // 2
            self.done += macs * self._prices.get(packet.__name__, self._per_mac)
        else:
            self.done += self._per_other
        return out

    def mark(self) -> int:
        self.marks += 1
        return self.done

    def seconds(self, start: int, end: int) -> float:
        return (end - start) * NANO


def timed(
    dyn: dc.DynamicModel, folder: Path, clock: WorkClock | None = None, batch: int = 2, **more: Any
) -> Latency:
    """`dyn` on such a device; by default time is MACs."""
    clock = WorkClock() if clock is None else clock
    with clock:
        return Latency(dyn, batch=batch, clock=clock, cache=folder, rounds=1, **more)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        first = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        self.body = nn.Sequential(*first, nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def residual_net() -> nn.Module:
    """Two stages of a residual block each, on images [B, 3, 8, 8]."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), Residual(8)
    second = nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.ReLU(), Residual(12)
    return nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))


METHODS = {
    "widths": "dsnet(divisor=1, minimum=1)",
    "blocks": "dsnet(divisor=1, minimum=1, per='block')",
    "depth": "dsnet(divisor=1, minimum=1, ratios=(0.5, 1.0), depth=(0.5, 1.0))",
    "layers": "lcnet(channels=False)",
    "routing": "routing",
    "exits": "exits",
    "sizes": "resolution(sizes=(4, 8)) | lcnet(channels=False)",
}
"""Those whose times are exact where time is MACs: every combination of their sizes is timed."""
CHANNELS = "lcnet(layers=False)"
MANY = "dsnet(divisor=1, minimum=1, ratios=(0.25, 0.375, 0.5, 0.625, 0.75, 0.875))"


@cache
def made(spec: str) -> dc.DynamicModel:
    """A dynamic model, shared by the tests of a process: leave it as it is."""
    return dc.dynamize(residual_net(), spec.split(" | "), torch.randn(2, 3, 8, 8)).eval()


def some_routes(dyn: dc.DynamicModel, count: int) -> Iterator[dc.Route]:
    """The full and the smallest route, then random ones, each of 4 rows."""
    policies = [dc.Full(), dc.Smallest(), *(dc.Sampled(seed, per_sample=True) for seed in range(count))]
    for policy in policies:
        yield {name: policy.decide(choice, 4, None) for name, choice in dyn.choices.items()}
