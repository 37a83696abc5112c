"""Networks for tests of the command line, given as `tests.tiny:NAME`."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Tied(nn.Module):
    """Two names for one tensor, [B, 8] -> [B, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


def conv_net(width: int = 16) -> tuple[nn.Module, Tensor]:
    """Two convolutions and a classifier on images [2, 3, 8, 8]."""
    layers = (
        nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        nn.Sequential(nn.Conv2d(width, 2 * width, 3, stride=2), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 5)),
    )
    return nn.Sequential(*layers), torch.randn(2, 3, 8, 8)


def buggy() -> nn.Module:
    raise ZeroDivisionError("a bug in the user's own function")
