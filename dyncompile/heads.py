"""Small networks that passes insert: a head on pooled features, and one for coefficients of mixtures."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dyncompile.analysis.points import Point
from dyncompile.seeds import seed_of

Activation = Literal["softmax", "sigmoid", "free"]
ACTIVATIONS = ("softmax", "sigmoid", "free")

FEATURES = 2048
"""Most features that pooling to a grid makes: where channels are many, one mean of each says enough."""


@contextmanager
def seeded(name: str) -> Generator[None]:
    """Random numbers inside depend on `name` alone; the global generators go on as before."""
    generators: Any = torch.random
    with generators.fork_rng(devices=[]):
        generators.manual_seed(seed_of(name))
        yield


class PooledHead(nn.Module):
    """``x [B, ..., C, ...] -> (logits [B, classes], features [B, F])``: pooled positions, norm, linear.

    Maps [B, C, H, W] are pooled to a grid of cells: `grid` per side, fewer where cells and channels would
    make more than `FEATURES`. Smaller maps repeat positions: a head fits a network at all sizes of its input.
    Maps of one position and other layouts have one mean. Token streams [B, N, C]
    get a layer norm, as transformers have before their heads; maps get none. With `hidden` above 0 there is a
    layer of that width between, of as many as there are classes if these are more.
    """

    def __init__(self, point: Point, classes: int, grid: int = 1, hidden: int = 0) -> None:
        super().__init__()
        rank, channels = len(point.shape) + 1, point.shape[point.channels - 1]
        is_map = rank == 4 and point.channels == 1 and point.shape[1:] != (1, 1)
        grid = max(1, min(grid, math.isqrt(FEATURES // channels)))
        self._cells = (grid, grid) if is_map and grid > 1 else None
        self._positions = [axis for axis in range(1, rank) if axis != point.channels]
        features = channels * math.prod(self._cells or (1,))
        width = max(hidden, classes) if hidden else 0
        self.norm = nn.LayerNorm(features) if rank == 3 else nn.Identity()
        self.reduce = nn.Sequential(nn.Linear(features, width), nn.ReLU()) if width else nn.Identity()
        self.head = nn.Linear(width or features, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both."""
        if self._cells:
            x = F.adaptive_avg_pool2d(x, self._cells).flatten(1)
        elif self._positions:
            x = x.mean(self._positions)
        features = self.norm(x)
        return self.head(self.reduce(features)), features


class CoefficientHead(nn.Module):
    """``features [B, F] -> coefficients [B, layers x bases]``: linear, then an activation over the bases.

    It starts with random weights, never with zeros: bases that are equal and get equal coefficients get equal
    gradients, and stay equal for good.
    """

    def __init__(
        self, features: int, layers: int, bases: int, activation: Activation, temperature: float
    ) -> None:
        super().__init__()
        self._bases, self._activation, self._temperature = bases, activation, temperature
        self.head = nn.Linear(features, layers * bases)

    def forward(self, features: Tensor) -> Tensor:
        """Softmax: those of a layer sum to 1. Sigmoid: each in (0, 1). Free: any number."""
        scores = self.head(features) / self._temperature
        if self._activation == "free":
            return scores
        if self._activation == "sigmoid":
            return scores.sigmoid()
        return scores.unflatten(1, (-1, self._bases)).softmax(-1).flatten(1)
