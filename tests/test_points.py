"""Places for decisions: where branches start, what trunk contractions read, where several ways fork."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import dyncompile as dc
from dyncompile.analysis.facts import analyze
from dyncompile.capture import capture
from tests.region_nets import conv


class DualPath(nn.Module):
    """Blocks that add to a part of the channels and append others (Dual Path Networks, 2017), in short."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.first, self.second = conv(8, 12), conv(12, 12)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for block in (self.first, self.second):
            out = block(x).relu()
            x = torch.cat((x[:, :8] + out[:, :8], x[:, 8:], out[:, 8:]), 1)
        return self.head(x.mean((2, 3)))


class Inception(nn.Module):
    """Two ways side by side, twice; no value of the trunk is read by a convolution of the trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.left, self.right = conv(8, 4), conv(8, 8, 1)
        self.wide, self.deep = conv(12, 4, 1), nn.Sequential(conv(12, 6, 1), nn.ReLU(), conv(6, 4))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = torch.cat((self.left(x), self.right(x)), 1).relu()
        x = torch.cat((self.wide(x), self.deep(x)), 1).relu()
        return self.head(x.mean((2, 3)))


def points_of(model: nn.Module) -> tuple[str, ...]:
    program = capture(model.eval(), (torch.randn(2, 3, 8, 8),))
    return tuple(point.name for point in analyze(program).points.points)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (DualPath(), ("relu", "cat", "mean")),  # in front of either block, and of the head
        (Inception(), ("relu", "relu_1", "mean")),
        (nn.Sequential(conv(3, 8), conv(8, 8), conv(8, 8)), ("batch_norm", "batch_norm_1")),
    ],
)
def test_points_stand_where_work_starts(model: nn.Module, expected: tuple[str, ...]) -> None:
    assert points_of(model) == expected


@pytest.mark.parametrize("make", [DualPath, Inception])
def test_widths_behind_forks_are_decided(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(4, 3, 8, 8)
    dyn = dc.dynamize(model, "dsnet(divisor=1, minimum=1)", (x,))
    dc.verify(dyn, model, (x,))
    assert float(dyn.macs(dyn.route(0))) < 0.7 * dyn.static_macs
