"""Nets that look at a small copy of an image and say which size it needs: images [B, C, H, W] -> [B, sizes].

None has a batch norm: a batch may be one image. Group norms have one group per 8 channels.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from dyncompile.torchlib import seeded

_GROUP = 8
_CELLS = 4
"""Cells per side that the smallest net pools an image to."""


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, width // _GROUP), width)


def _conv(width: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(width, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, _norm(out))


class _Block(nn.Module):
    """A basic residual block."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = _conv(width, out, 3, stride), _conv(out, out, 3)
        self.shortcut = _conv(width, out, 1, stride) if stride > 1 or width != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.second(F.relu(self.first(x))))


class _Inverted(nn.Module):
    """An inverted residual of MobileNetV2 with expansion 4."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        inner = 4 * width
        self.expand, self.project = _conv(width, inner, 1), _conv(inner, out, 1)
        self.depthwise = _conv(inner, inner, 3, stride, inner)
        self.is_residual = stride == 1 and width == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(F.relu6(self.depthwise(F.relu6(self.expand(x)))))
        return x + y if self.is_residual else y


def _residual(channels: int) -> tuple[nn.Module, int]:
    """DRNet's for ResNets: 7x7 stem, one basic block per stage of 64, 128, 256, 512 channels."""
    stem = nn.Sequential(_conv(channels, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    stages = [_Block(a, b, s) for a, b, s in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))]
    return nn.Sequential(stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 512


def _mobile(channels: int) -> tuple[nn.Module, int]:
    """Five inverted residuals of 16 to 64 channels."""
    stem = nn.Sequential(_conv(channels, 16, 3, 2), nn.ReLU6())
    widths = ((16, 16, 1), (16, 24, 2), (24, 32, 2), (32, 64, 2), (64, 64, 1))
    blocks = [_Inverted(*one) for one in widths]
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 64


def _linear(channels: int) -> tuple[nn.Module, int]:
    """A hidden layer on the image pooled to a few cells."""
    cells = nn.Sequential(nn.AdaptiveAvgPool2d(_CELLS), nn.Flatten())
    return nn.Sequential(cells, nn.Linear(channels * _CELLS**2, 16), nn.ReLU()), 16


KINDS: Mapping[str, tuple[Callable[[int], tuple[nn.Module, int]], int]] = {
    "residual": (_residual, 128),
    "mobile": (_mobile, 64),
    "linear": (_linear, 16),
}
"""Nets by name, the costliest first: how they are made, and the longer side of the copy that they look at."""


class Predictor(nn.Module):
    """Logits [B, sizes] of images [B, C, H, W], from a copy of at most `view` pixels (height, width).

    The last layer starts at zero with a bias that gives the native size, the last column, the probability
    `confidence`: untrained, it reproduces the source.
    """

    def __init__(
        self, kind: str, channels: int, sizes: int, view: tuple[int, int], confidence: float, name: str
    ) -> None:
        super().__init__()
        make, _ = KINDS[kind]
        self.view = view
        with seeded(_seed(name)):
            self.body, features = make(channels)
        self.head = nn.Linear(features, sizes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.head.bias[-1] = math.log(confidence * max(sizes - 1, 1) / (1 - confidence))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, sizes]."""
        if x.shape[-2:] != self.view:
            x = F.interpolate(x, self.view, mode="bilinear", antialias=True)
        return self.head(self.body(x))


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")


def macs_of(predictor: Predictor, channels: int) -> float:
    """MACs per image."""
    with torch.device("meta"):
        image = torch.empty(1, channels, *predictor.view)
    with FlopCounterMode(display=False) as counter:
        predictor.to("meta")(image)
    return counter.get_total_flops() / 2
