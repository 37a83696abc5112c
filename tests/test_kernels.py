"""Faster kernels of deployed models give what the operators give, and are used where they pay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import dyncompile as dc
from dyncompile.deploy.kernels import max_pool2d

POOL = torch.ops.aten.max_pool2d.default
POOLS = (POOL, torch.ops.aten.max_pool2d_with_indices.default)


class Pooled(TorchDispatchMode):
    """Notes whether each map that is pooled has its channels innermost."""

    def __init__(self) -> None:
        super().__init__()
        self.innermost: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in POOLS:
            self.innermost.append(not args[0].is_contiguous())
        return func(*args, **(kwargs or {}))


def image(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


SETTINGS: tuple[tuple[Any, ...], ...] = (
    ([3, 3], [2, 2], [1, 1]),
    ([2, 2],),
    ([3, 2], [1, 2], [1, 0], [2, 1]),
    ([3, 3], [2, 2], [0, 0], [1, 1], True),
)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_pooling_is_that_of_the_operator(settings: tuple[Any, ...], dtype: torch.dtype) -> None:
    x = image(3, 16, 27, 26, dtype=dtype)
    x[0, 3, 5, 5], x[1, 2, 7, 9], x[2, 1] = torch.nan, torch.inf, -torch.inf
    with torch.no_grad(), Pooled() as found:
        given = max_pool2d(x, *settings)
    assert found.innermost == [True]
    expected = POOL(x, *settings)
    assert given.dtype == dtype
    assert given.is_contiguous()
    assert given.stride() == expected.stride()
    torch.testing.assert_close(given, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("x", [image(16, 64, 64), image(1, 3, 99, 99), image(2, 32, 4, 4)])
def test_what_does_not_pay_is_left_alone(x: Tensor) -> None:
    with torch.no_grad(), Pooled() as found:
        given = max_pool2d(x, [2, 2])
    assert found.innermost == [False]
    assert torch.equal(given, POOL(x, [2, 2]))


def test_maps_with_channels_innermost_stay_so() -> None:
    x = image(2, 16, 32, 32).contiguous(memory_format=torch.channels_last)
    assert max_pool2d(x, [2, 2]).is_contiguous(memory_format=torch.channels_last)


class Pooling(nn.Module):
    """A stem that is pooled, a block, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x).relu())
        return self.head((x + self.conv(x).relu()).mean((2, 3)))


def test_deployed_models_use_them() -> None:
    model = Pooling().eval()
    x = image(3, 3, 40, 40)
    dyn = dc.dynamize(model, "lcnet", (x,)).eval()
    fast = dc.deploy(dyn)
    for policy in (dc.Full(), dc.Learned(), dc.Sampled(1, per_sample=True)):
        with Pooled() as found:
            given, route = fast.run(x, policy=policy)
        assert found.innermost
        assert all(found.innermost)
        with torch.no_grad(), Pooled() as found:
            expected, _ = dyn.run(x, policy=dc.Forced(route))
        assert found.innermost
        assert not any(found.innermost)
        torch.testing.assert_close(given, expected)
