"""Rounding that a network magnifies is no fault to `verify`, and a fault is none the less one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dyncompile as dc
from dyncompile.verify.rounding import check_alike
from dyncompile.verify.subject import Subject, captured_anew

TOLERANCE = 1e-5


class Cancels(nn.Module):
    """Of what its first layer gives, the leading digits are lost: float32 is 1e-4 from float64."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(64, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 64] -> [B, 8]``."""
        return self.head((self.first(x) + 2000.0) - 2000.0)


class Fixed(Cancels):
    """Takes float32 only."""

    def forward(self, x: Tensor) -> Tensor:
        """See `Cancels`."""
        if x.dtype is not torch.float32:
            raise TypeError("float32 only")
        return super().forward(x)


@torch.no_grad()
def other_way(net: Cancels, x: Tensor) -> Tensor:
    """The same in another order."""
    first = x.flip(1) @ net.first.weight.flip(1).T + (net.first.bias + 2000.0)
    return net.head(first - 2000.0)


def check(net: Cancels, fault: Any) -> Any:
    x = torch.randn(16, 64)
    dyn = dc.dynamize(net, "dsnet(gate=False)", x)
    subject = Subject(dyn, net, (x,), {}, (), captured_anew(dyn, net, (x,), {}))

    @torch.no_grad()
    def ways(given: Subject) -> tuple[list[Any], list[Any]]:
        reference: Any = given.reference
        (x,), _ = given.rows(16)
        return [reference(x)], [other_way(reference, x) + fault(x.dtype)]

    return check_alike("ways", subject, ways, TOLERANCE, "16 rows")


def test_magnified_rounding_passes_and_says_how_much_it_is() -> None:
    found = check(Cancels(), lambda dtype: 0.0)
    assert found.passed
    assert found.difference > TOLERANCE, "or there is nothing to tell apart"
    assert "in float64" in found.detail


@pytest.mark.parametrize("size", [1e-3, 1e-8])
def test_a_fault_behind_rounding_is_found(size: float) -> None:
    assert not check(Cancels(), lambda dtype: size).passed


def test_a_fault_of_float32_alone_is_found() -> None:
    assert not check(Cancels(), lambda dtype: 0.05 if dtype is torch.float32 else 0.0).passed


def test_what_float64_cannot_tell_does_not_pass() -> None:
    found = check(Fixed(), lambda dtype: 0.0)
    assert not found.passed
    assert "float64, which would tell rounding from a fault, is refused (TypeError)" in found.detail
