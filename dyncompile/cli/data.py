"""From the command line's words to datasets."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from dyncompile.cli.models import find_modules_here
from dyncompile.errors import InputError, SpecError
from dyncompile.runtime.model import DynamicModel
from dyncompile.zoo.loaders import call_function

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_HELD_OUT = 10
"""Of a folder that is not split every tenth image of a class validates."""


@dataclass(frozen=True)
class Datasets:
    """Datasets of (input, target) or dicts; `validation` may be missing."""

    train: Any
    validation: Any


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """Images in one folder per class, as [C, H, W] in the size and channels that the model takes.

    Args:
        folder: its subfolders, sorted by name, are the classes.
        shape: (C, H, W); C is 1 or 3.
        mean, deviation: a pixel becomes (value in [0, 1] - mean) / deviation.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int], mean: float, deviation: float) -> None:
        self.classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
        self.files = [
            (path, label)
            for label, name in enumerate(self.classes)
            for path in sorted((folder / name).rglob("*"))
            if path.suffix.lower() in _SUFFIXES
        ]
        if not self.files:
            raise InputError(
                "there is no image in a subfolder", where=str(folder), fix="store CLASS/NAME.png"
            )
        if shape[0] not in (1, 3):
            raise InputError(
                f"the model takes {shape[0]} channels, image files have 1 or 3", where=str(folder)
            )
        self._shape, self._mean, self._deviation = shape, mean, deviation

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        image: Any = importlib.import_module("PIL.Image")
        channels, height, width = self._shape
        try:
            with image.open(path) as opened:
                pixels = np.asarray(opened.convert("L" if channels == 1 else "RGB").resize((width, height)))
        except Exception as error:  # a damaged image can make a decoder fail in any way
            raise InputError(f"an image cannot be read: {error}", where=str(path)) from None
        values = torch.as_tensor(pixels.astype(np.float32) / 255).view(height, width, channels)
        return (values.permute(2, 0, 1) - self._mean) / self._deviation, label


def load_data(spec: str, dyn: DynamicModel, mean: float = 0.5, deviation: float = 0.5) -> Datasets:
    """The datasets that a specification names.

    Raises:
        SpecError: it names neither a folder nor a function.
        InputError: the folder holds no images, or the model takes none.
    """
    folder = Path(spec)
    if folder.is_dir():
        return _folder(folder, dyn, mean, deviation)
    if ":" not in spec:
        raise SpecError(
            f"{spec!r} is neither a folder nor a function", fix="write package.module:function, or a folder"
        )
    find_modules_here()
    made = call_function(spec)
    both = isinstance(made, tuple) and len(cast("tuple[Any, ...]", made)) == 2
    return Datasets(*cast("tuple[Any, Any]", made)) if both else Datasets(made, None)


def _folder(folder: Path, dyn: DynamicModel, mean: float, deviation: float) -> Datasets:
    shape = _image_shape(dyn)

    def opened(place: Path) -> ImageFolder:
        return ImageFolder(place, shape, mean, deviation)

    validation = next((folder / n for n in ("val", "validation", "test") if (folder / n).is_dir()), None)
    if (folder / "train").is_dir():
        return Datasets(opened(folder / "train"), None if validation is None else opened(validation))
    whole = opened(folder)
    held = list(range(0, len(whole), _HELD_OUT))
    kept = [i for i in range(len(whole)) if i % _HELD_OUT]
    return Datasets(Subset(whole, kept), Subset(whole, held)) if kept else Datasets(whole, None)


def _image_shape(dyn: DynamicModel) -> tuple[int, int, int]:
    shapes = [leaf.shape for leaf in dyn.program.signature.leaves if leaf.shape is not None]
    image = next((shape for shape in shapes if len(shape) == 4 and shape[0] is None), None)
    if image is None:
        raise InputError("the model takes no images", fix="name a function that returns a dataset")
    return cast("tuple[int, int, int]", image[1:])
