"""From the command line's words to datasets."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from dyncompile.cli.folders import images_by_class, parts_of
from dyncompile.cli.models import find_modules_here
from dyncompile.errors import InputError, SpecError
from dyncompile.runtime.model import DynamicModel
from dyncompile.zoo.loaders import call_function
from dyncompile.zoo.third_party import third_party

_HELD_OUT = 10
"""Of a folder that is not split every tenth image of a class validates."""


@dataclass(frozen=True)
class Datasets:
    """Datasets of (input, target) or dicts; `validation` may be missing."""

    train: Any
    validation: Any

    @property
    def measured(self) -> Any:
        """What to measure on: the validation part, or all that there is."""
        return self.train if self.validation is None else self.validation


@dataclass(frozen=True)
class Pixels:
    """A pixel becomes (value in [0, 1] - mean) / deviation; one number each, or one per channel."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def of(self, channels: int) -> tuple[Tensor, Tensor]:
        """Both as [C, 1, 1]; gray images take the mean over the channels of a colored scale.

        Raises:
            SpecError: neither one number nor one per channel, or a deviation that is not above 0.
        """
        if any(value <= 0 for value in self.deviation):
            raise SpecError(f"a deviation is above 0, got {self.deviation}")
        return self._spread(self.mean, channels), self._spread(self.deviation, channels)

    @staticmethod
    def _spread(values: tuple[float, ...], channels: int) -> Tensor:
        if len(values) == 3 and channels == 1:
            values = (sum(values) / 3,)
        if len(values) not in (1, channels):
            raise SpecError(f"{len(values)} numbers were given for {channels} channels: {values}")
        return torch.tensor(values).expand(channels).reshape(channels, 1, 1)


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Images in one folder per class, as [C, H, W] in the size and channels that the model takes.

    Args:
        folder: its subfolders, sorted by name, are the classes; hidden ones are none.
        shape: (C, H, W); C is 1 or 3.
        scale: how a pixel becomes a number.
        classes: those of the training part, whose places are the labels here too; some may have no images.

    Raises:
        InputError: no image, an empty or an unknown class, or a model that takes no such images.
    """

    def __init__(
        self, folder: Path, shape: tuple[int, int, int], scale: Pixels, classes: Sequence[str] | None = None
    ) -> None:
        found = images_by_class(folder, classes)
        self.classes = list(found)
        self.files = [(path, label) for label, images in enumerate(found.values()) for path in images]
        if shape[0] not in (1, 3):
            raise InputError(
                f"the model takes {shape[0]} channels, image files have 1 or 3", where=str(folder)
            )
        self._shape = shape
        self._mean, self._deviation = scale.of(shape[0])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        image = _reader()
        channels, height, width = self._shape
        try:
            with image.open(path) as opened:
                pixels = np.asarray(opened.convert("L" if channels == 1 else "RGB").resize((width, height)))
        except Exception as error:  # a damaged image can make a decoder fail in any way
            raise InputError(f"an image cannot be read: {error}", where=str(path)) from None
        values = torch.as_tensor(pixels.astype(np.float32) / 255).view(height, width, channels)
        return (values.permute(2, 0, 1) - self._mean) / self._deviation, label


def _reader() -> Any:
    """Pillow, which torchvision and timm bring along. Raises SpecError without it."""
    if importlib.util.find_spec("PIL") is None:
        raise SpecError("images are read by pillow, which is not installed", fix="pip install pillow")
    return importlib.import_module("PIL.Image")


def pixels(mean: str | None, deviation: str | None, source: str | None) -> Pixels:
    """As given, else as the library of the source says that it was trained, else (pixel - 0.5) / 0.5.

    Raises:
        SpecError: a word is no number, or no list of numbers.
    """
    known = _trained_with(source or "")
    given = (
        known.mean if mean is None else _numbers("--mean", mean),
        known.deviation if deviation is None else _numbers("--deviation", deviation),
    )
    return Pixels(*given)


def _trained_with(source: str) -> Pixels:
    """What timm's configuration of a model says; torchvision's classifiers all use ImageNet's statistics."""
    kind, _, rest = source.partition(":")
    name = rest.partition("?")[0]
    if kind == "torchvision":
        return Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    if kind == "timm" and importlib.util.find_spec("timm") is not None:
        found = third_party("timm").models.get_pretrained_cfg(name)
        if found is not None:
            return Pixels(tuple(found.mean), tuple(found.std))
    return Pixels((0.5,), (0.5,))


def _numbers(option: str, words: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in words.split(","))
    except ValueError:
        raise SpecError(f"{option} {words} is no number or list", fix="as in 0.485,0.456,0.406") from None


def load_data(spec: str, dyn: DynamicModel, scale: Pixels | None = None) -> Datasets:
    """The datasets that a specification names.

    Raises:
        SpecError: it names neither a folder nor a function.
        InputError: the folder holds no images, or not in classes and parts, or the model takes none.
    """
    folder = Path(spec)
    if folder.is_dir():
        return _folder(folder, dyn, scale or Pixels((0.5,), (0.5,)))
    if ":" not in spec:
        raise SpecError(
            f"{spec!r} is neither a folder nor a function", fix="write package.module:function, or a folder"
        )
    find_modules_here()
    made = call_function(spec)
    both = isinstance(made, tuple) and len(cast("tuple[Any, ...]", made)) == 2
    return Datasets(*cast("tuple[Any, Any]", made)) if both else Datasets(made, None)


def _folder(folder: Path, dyn: DynamicModel, scale: Pixels) -> Datasets:
    shape = _image_shape(dyn)

    parts = parts_of(folder)
    if parts is not None:
        train = ImageFolder(parts[0], shape, scale)
        held_out = None if parts[1] is None else ImageFolder(parts[1], shape, scale, train.classes)
        return Datasets(train, held_out)
    whole = ImageFolder(folder, shape, scale)
    held = list(range(0, len(whole), _HELD_OUT))
    kept = [i for i in range(len(whole)) if i % _HELD_OUT]
    return Datasets(Subset(whole, kept), Subset(whole, held)) if kept else Datasets(whole, None)


def _image_shape(dyn: DynamicModel) -> tuple[int, int, int]:
    shapes = [leaf.shape for leaf in dyn.program.signature.leaves if leaf.shape is not None]
    image = next((shape for shape in shapes if len(shape) == 4 and shape[0] is None), None)
    if image is None:
        raise InputError("the model takes no images", fix="name a function that returns a dataset")
    return cast("tuple[int, int, int]", image[1:])
