"""Scenes: products pasted at random scales and places onto crops of photographs."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.fashion.data import Data, Split

SIDE = 64
SIDES = (14.0, 56.0)
"""Of a product in a scene, in pixels: log-uniform between these."""
BINS = {"small": (14.0, 22.2), "medium": (22.2, 35.3), "large": (35.3, 56.0)}
"""Equally many products each."""

_PARTS = {"train": (0.0, 0.6), "validation": (0.6, 0.8), "test": (0.8, 1.0)}
"""Which part of a photograph's width the backgrounds come from."""
_WINDOWS = (64, 100)
"""Sides of background crops in pixels, before they are resized to a scene's."""
_CONTRAST = 0.6
_OPAQUE = 4.0
"""A product covers its background where it is brighter than 1 over this."""
_MEAN, _DEVIATION = 0.3, 0.25
"""About those of scenes; the network's input is standardized by them."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Scenes, and the side in pixels [N] of the product in each."""

    split: Split
    sides: Tensor

    def within(self, low: float, high: float) -> Tensor:
        """Positions of the scenes whose product is so large: int64 [n]."""
        return ((self.sides >= low) & (self.sides < high)).nonzero().flatten()


@dataclass(frozen=True, slots=True)
class Scenes:
    """A sized iterable of (scenes [B, 1, 64, 64], labels [B]); every pass draws other scenes.

    Everything random comes from `generator`: whoever seeds it anew, as `dyncompile.fit` does before every
    epoch, gets the same epoch again.
    """

    products: Split
    photographs: tuple[Tensor, ...]
    size: int
    generator: torch.Generator

    def __len__(self) -> int:
        return math.ceil(len(self.products.labels) / self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.products.labels), generator=self.generator)
        for rows in order.split(self.size):
            scenes, _ = compose(self.products.images[rows], self.photographs, self.generator)
            yield scenes, self.products.labels[rows]


def drawn(products: Split, photographs: tuple[Tensor, ...], seed: int) -> Drawn:
    """One scene per product, the same in every run."""
    generator = torch.Generator().manual_seed(seed)
    parts = [compose(images, photographs, generator) for images in products.images.split(500)]
    scenes, sides = (torch.cat(list(column)) for column in zip(*parts, strict=True))
    return Drawn(Split(scenes, products.labels), sides)


def products(data: Data) -> Data:
    """Fashion-MNIST with pixels in [0, 1], 0 outside the product."""
    low, high = float(data.train.images.min()), float(data.train.images.max())
    scale = lambda part: Split((part.images - low) / (high - low), part.labels)  # noqa: E731
    return Data(scale(data.train), scale(data.validation), scale(data.test))


def photographs(part: str) -> tuple[Tensor, ...]:
    """Gray photographs [1, H, W] in [0, 1], cut to the part's share of their width.

    Raises:
        ModuleNotFoundError: scikit-learn is missing; it is the extra ``demo``.
    """
    datasets: Any = importlib.import_module("sklearn.datasets")
    low, high = _PARTS[part]
    found: list[Tensor] = []
    for pixels in datasets.load_sample_images().images:
        gray = torch.from_numpy(pixels.copy()).float().mean(2)[None] / 255
        width = gray.shape[2]
        found.append(gray[:, :, int(low * width) : int(high * width)])
    return tuple(found)


def compose(
    images: Tensor, photographs: tuple[Tensor, ...], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Products [B, 1, 28, 28] in scenes [B, 1, 64, 64], standardized, and their sides [B] in pixels."""
    low, high = (math.log(side) for side in SIDES)
    sides = torch.exp(low + (high - low) * torch.rand(len(images), generator=generator))
    room = (SIDE - sides) / SIDE
    centers = (2 * torch.rand(len(images), 2, generator=generator) - 1) * room[:, None]
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    zoom = SIDE / sides
    across = torch.where(mirrored, -zoom, zoom)
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = across, zoom
    theta[:, 0, 2], theta[:, 1, 2] = -across * centers[:, 0], -zoom * centers[:, 1]
    grid = F.affine_grid(theta, [len(images), 1, SIDE, SIDE], align_corners=False)
    pasted = F.grid_sample(images, grid, align_corners=False)
    cover = (_OPAQUE * pasted).clamp(0, 1)
    scenes = cover * pasted + (1 - cover) * _CONTRAST * _backgrounds(len(images), photographs, generator)
    return (scenes - _MEAN) / _DEVIATION, sides


def _backgrounds(count: int, photographs: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
    """Random crops [count, 1, 64, 64]."""
    found: list[Tensor] = []
    for _ in range(count):
        photograph = photographs[int(torch.randint(len(photographs), (), generator=generator))]
        window = int(torch.randint(_WINDOWS[0], _WINDOWS[1] + 1, (), generator=generator))
        top, left = (
            int(torch.randint(side - window + 1, (), generator=generator)) for side in photograph.shape[1:]
        )
        crop = photograph[:, top : top + window, left : left + window]
        found.append(F.interpolate(crop[None], (SIDE, SIDE), mode="bilinear", antialias=True)[0])
    return torch.stack(found)
