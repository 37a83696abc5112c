"""Small networks that passes insert: a head on pooled features, and one for coefficients of mixtures."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dyncompile.analysis.points import Point
from dyncompile.seeds import seed_of

Activation = Literal["softmax", "sigmoid", "free"]
ACTIVATIONS = ("softmax", "sigmoid", "free")


@contextmanager
def seeded(name: str) -> Generator[None]:
    """Random numbers inside depend on `name` alone; the global generators go on as before."""
    generators: Any = torch.random
    with generators.fork_rng(devices=[]):
        generators.manual_seed(seed_of(name))
        yield


class PooledHead(nn.Module):
    """``x [B, ..., C, ...] -> (logits [B, classes], features [B, C])``: mean over positions, norm, linear.

    Token streams [B, N, C] get a layer norm, as transformers have before their heads; maps get none.
    """

    def __init__(self, point: Point, classes: int) -> None:
        super().__init__()
        rank, channels = len(point.shape) + 1, point.shape[point.channels - 1]
        self._positions = [axis for axis in range(1, rank) if axis != point.channels]
        self.norm = nn.LayerNorm(channels) if rank == 3 else nn.Identity()
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both."""
        features = self.norm(x.mean(self._positions) if self._positions else x)
        return self.head(features), features


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
