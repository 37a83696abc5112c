"""Data for tests of the command line, given as `tests.cli_data:sets`."""

from __future__ import annotations

import torch
from torch.utils.data import TensorDataset


def sets(count: int = 48) -> tuple[TensorDataset, TensorDataset]:
    """Images [3, 8, 8] whose brightest channel is their class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (count,), generator=generator)
    images = torch.randn(count, 3, 8, 8, generator=generator)
    images[torch.arange(count), labels] += 2
    return TensorDataset(images, labels), TensorDataset(images[:16], labels[:16])


def alone() -> TensorDataset:
    """No validation part."""
    return sets()[0]
