"""Verification anywhere: of frozen networks, of those that return integers, in a user's own mode."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dyncompile as dc


class Residual(nn.Module):
    """Images [B, 3, 8, 8] -> class scores [B, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(F.relu(x + self.inner(x)).mean((2, 3)))


class Classes(Residual):
    """Images -> classes [B], integers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(1)


class Grids(Residual):
    """Keeps what it computes for a size."""

    def __init__(self) -> None:
        super().__init__()
        self.grids: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-1]
        if size not in self.grids:
            self.grids[size] = torch.linspace(-1, 1, size)
        return super().forward(x + self.grids[size])


def frozen() -> nn.Module:
    return Residual().requires_grad_(False)


def details(report: object) -> str:
    """What the check of decision nets' gradients says."""
    return next(line for line in str(report).splitlines() if "gradients of decision nets" in line)


@pytest.mark.parametrize(("make", "terms"), [(frozen, "task and cost"), (Classes, "cost"), (Grids, "task")])
def test_networks_without_a_loss_or_with_a_memory(make: Callable[[], nn.Module], terms: str) -> None:
    net, x = make(), torch.randn(2, 3, 8, 8)
    report = dc.verify(dc.dynamize(net, "lcnet", x), net, x)
    assert f"by {terms}" in details(report)


def test_decision_nets_that_do_not_learn_need_no_gradient() -> None:
    net, x = frozen(), torch.randn(2, 3, 8, 8)
    dyn = dc.dynamize(net, "lcnet", x).requires_grad_(False)
    assert "no decision net in this model has parameters that learn" in details(dc.verify(dyn, net, x))


@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
def test_the_users_mode_is_not_verifications(mode: Callable[[], AbstractContextManager[object]]) -> None:
    net, x = Residual(), torch.randn(2, 3, 8, 8)
    dyn = dc.dynamize(net, "lcnet", x)
    with mode():
        report = dc.verify(dyn, net, x + 1)  # in inference mode the sum is a tensor of that mode
    assert "by task and cost" in details(report)


def test_random_generators_go_on_as_if_nothing_had_been() -> None:
    net, x = Residual(), torch.randn(2, 3, 8, 8)
    dyn = dc.dynamize(net, "lcnet", x)
    before = torch.get_rng_state()
    dc.verify(dyn, net, x, seed=5)
    assert torch.equal(before, torch.get_rng_state())
