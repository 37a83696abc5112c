"""Fashion-MNIST in three parts: 50,000 images to train on, 10,000 to choose by, 10,000 to report.

``python -m benchmarks.fashion.data`` fetches and checks the files and prints what they hold.
"""

from __future__ import annotations

import gzip
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.fashion.files import locate
from dyncompile.errors import DyncompileError

CLASSES = 10
VALIDATION = 10_000
_SPLIT_SEED = 0
SHIFT = 2
_BYTE = 0x08


@dataclass(frozen=True, slots=True)
class Split:
    """Samples and labels [N].

    Those of Fashion-MNIST are images [N, 1, 28, 28], mean 0 and deviation 1 over the training part.
    """

    images: Tensor
    labels: Tensor

    def head(self, count: int) -> Split:
        """The first `count` samples."""
        return Split(self.images[:count], self.labels[:count])

    def chunks(self, size: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples in order."""
        return iter(zip(self.images.split(size), self.labels.split(size), strict=True))


@dataclass(frozen=True, slots=True)
class Data:
    """Training; validation (chooses epochs and thresholds); test (reported, chooses nothing)."""

    train: Split
    validation: Split
    test: Split

    def head(self, count: int) -> Data:
        """The first `count` samples of every part: for trials of the machinery, not for results."""
        return Data(self.train.head(count), self.validation.head(count), self.test.head(count))


@dataclass(frozen=True)
class Batches:
    """A sized iterable of (images, labels); every pass is another epoch, in random order and augmented.

    An epoch takes `count` images, drawn anew from all of the split; None takes all.
    Images move by up to `shift` pixels. Everything random is drawn from `generator`: whoever seeds it anew,
    as `dyncompile.fit` does before every epoch, gets the same epoch again.
    """

    split: Split
    size: int
    generator: torch.Generator
    shift: int = SHIFT
    count: int | None = None

    @classmethod
    def seeded(
        cls, split: Split, size: int, seed: int, shift: int = SHIFT, count: int | None = None
    ) -> Batches:
        """With a generator of their own."""
        return cls(split, size, torch.Generator().manual_seed(seed), shift, count)

    def __len__(self) -> int:
        images = len(self.split.labels)
        return math.ceil(min(self.count or images, images) / self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.split.labels), generator=self.generator)
        for rows in order[: self.count].split(self.size):
            yield augment(self.split.images[rows], self.generator, self.shift), self.split.labels[rows]


def augment(images: Tensor, generator: torch.Generator, shift: int = SHIFT) -> Tensor:
    """[B, C, H, W]: every image moved by up to `shift` pixels along each axis, half of them mirrored.

    What comes in at the border is background, the batch's smallest value.
    """
    size, places = images.shape[-1], 2 * shift + 1
    padded = F.pad(images, (shift,) * 4, value=float(images.min()))
    windows = padded.unfold(2, images.shape[2], 1).unfold(3, size, 1)  # [B, C, places, places, H, W]
    down, right = torch.randint(places, (2, len(images)), generator=generator)
    moved = windows[torch.arange(len(images)), :, down, right]
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], moved.flip(3), moved)


def load(folder: Path | None = None) -> Data:
    """All three parts; the split is stratified and the same in every run.

    Raises:
        DyncompileError: the files are missing, damaged or not what they should be.
    """
    where = folder or locate()
    images, labels = _pair(where, "train")
    validation = _stratified(labels, VALIDATION // CLASSES)
    deviation, mean = torch.std_mean(images[~validation])
    test_images, test_labels = _pair(where, "t10k")
    return Data(
        Split((images[~validation] - mean) / deviation, labels[~validation]),
        Split((images[validation] - mean) / deviation, labels[validation]),
        Split((test_images - mean) / deviation, test_labels),
    )


def read_idx(path: Path) -> np.ndarray:
    """The array of bytes in an idx .gz file (two zero bytes, type, rank, sizes as big-endian int32, data).

    Raises:
        DyncompileError: the header does not describe the data.
    """
    content = gzip.decompress(path.read_bytes())
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _BYTE:
        raise DyncompileError("not an idx file of bytes", where=str(path), fix="fetch it again")
    start = 4 + 4 * content[3]
    shape = tuple(np.frombuffer(content[4:start], ">i4").tolist())
    if len(shape) != content[3] or math.prod(shape) != len(content) - start:
        raise DyncompileError(
            f"the header says shape {shape}, there are {len(content) - start} bytes",
            where=str(path),
            fix="fetch it again",
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _pair(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images [N, 1, 28, 28] in [0, 1] and labels [N], in the order of the files."""
    images = read_idx(folder / f"{part}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz")
    if images.shape != (len(labels), 28, 28) or labels.max() >= CLASSES:
        raise DyncompileError(
            f"images {images.shape} and labels {labels.shape} do not fit", where=str(folder)
        )
    pixels = torch.from_numpy(images.astype(np.float32) / 255)
    return pixels[:, None], torch.from_numpy(labels.astype(np.int64))


def _stratified(labels: Tensor, per_class: int) -> Tensor:
    """A mask [N] that is true for `per_class` samples of every class."""
    generator = torch.Generator().manual_seed(_SPLIT_SEED)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(CLASSES):
        rows = (labels == label).nonzero()[:, 0]
        chosen[rows[torch.randperm(len(rows), generator=generator)[:per_class]]] = True
    return chosen


def main() -> int:
    """Fetch, check, and say what there is. Returns the exit status."""
    try:
        folder = locate()
        data = load(folder)
    except DyncompileError as error:
        print(error, file=sys.stderr)
        return 2
    parts = {name: len(getattr(data, name).labels) for name in ("train", "validation", "test")}
    print(f"Fashion-MNIST in {folder}: {', '.join(f'{count:,} {name}' for name, count in parts.items())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
