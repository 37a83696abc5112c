"""Handwritten digits that come with scikit-learn: 1,797 images of 8x8 pixels in ten classes."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from dyncompile.errors import DyncompileError

_TEST, _VALIDATION = 0.2, 0.1


@dataclass(frozen=True, slots=True)
class Split:
    """Images [N, 1, 8, 8] (mean 0, deviation 1 over the training part), labels [N], rows in the data."""

    images: Tensor
    labels: Tensor
    rows: tuple[int, ...]

    def batches(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch in random order, images shifted by up to a pixel; a last batch of one row is left out."""
        order = torch.randperm(len(self.labels), generator=generator)
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            if len(chosen) > 1:
                yield _shifted(self.images[chosen], generator), self.labels[chosen]


class Shifted(Dataset[tuple[Tensor, Tensor]]):
    """A split as a dataset: each image [1, 8, 8] is shifted anew whenever it is read."""

    def __init__(self, split: Split) -> None:
        self._split = split

    def __len__(self) -> int:
        return len(self._split.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = _shifted(self._split.images[index : index + 1], torch.default_generator)
        return image[0], self._split.labels[index]


@dataclass(frozen=True, slots=True)
class Digits:
    """A stratified split: training, validation (picks the source's epoch), test (reported, picks nothing)."""

    train: Split
    validation: Split
    test: Split


def load_digits(seed: int) -> Digits:
    """The digits, split 70 / 10 / 20.

    Raises:
        DyncompileError: scikit-learn is not installed.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise DyncompileError(
            "the demonstration takes its images from scikit-learn, which is not installed",
            fix="pip install 'dyncompile[demo]'",
        )
    datasets: Any = importlib.import_module("sklearn.datasets")
    bunch = datasets.load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None]
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    rest, test = _stratified([*range(len(labels))], labels, _TEST, seed)
    train, validation = _stratified(rest, labels, _VALIDATION / (1 - _TEST), seed)
    deviation, mean = torch.std_mean(images[train])
    scaled = (images - mean) / deviation
    return Digits(*(Split(scaled[rows], labels[rows], tuple(rows)) for rows in (train, validation, test)))


def _stratified(rows: list[int], labels: Tensor, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Two disjoint parts of `rows` with the same mix of classes; `share` of them in the second."""
    selection: Any = importlib.import_module("sklearn.model_selection")
    large, small = selection.train_test_split(
        rows, test_size=share, random_state=seed, stratify=labels[rows].numpy()
    )
    return sorted(large), sorted(small)


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """[B, C, H, W] with every image moved by -1, 0 or 1 pixels along each axis."""
    height, width = images.shape[2:]
    padded = F.pad(images, (1, 1, 1, 1), value=float(images.min()))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # [B, C, 3, 3, H, W]
    down, right = torch.randint(3, (2, len(images)), generator=generator)
    return windows[torch.arange(len(images)), :, down, right]
