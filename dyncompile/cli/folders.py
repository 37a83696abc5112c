"""How images lie in a folder: ``CLASS/*.png``, or ``train/CLASS/*.png`` and ``val/CLASS/*.png``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dyncompile.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
TRAINING = ("train", "training")
VALIDATION = ("val", "valid", "validation", "dev", "test")
"""Names of a part, in any case; of several the first that is there counts."""

_LISTED = 10
"""Classes that a message lists."""


def parts_of(folder: Path) -> tuple[Path, Path | None] | None:
    """The training and the validation part; None for a folder of classes that is not split.

    ``train/`` that lies beside others and has no folder in it is a class of that name.

    Raises:
        InputError: a validation part lies there without a training part.
    """
    named = {path.name.lower(): path for path in _folders(folder)}
    train, validation = (_first(named, names) for names in (TRAINING, VALIDATION))
    if train is None and validation is not None:
        raise InputError(
            f"{validation.name}/ is a validation part, and there is no training part",
            where=str(folder),
            fix=f"name the parts {' or '.join(TRAINING)}, and {' or '.join(VALIDATION)}, with folders of "
            "classes in them; a class of such a name needs another",
        )
    if train is None or (validation is None and len(named) > 1 and not _folders(train)):
        return None
    return train, validation


def images_by_class(folder: Path, known: Sequence[str] | None = None) -> dict[str, list[Path]]:
    """Sorted image files in the order of labels: of the sorted folders, or of the classes that are `known`.

    Raises:
        InputError: there is no image, a class without one (where none are known), or a class that is unknown.
    """
    found = {path.name: _images(path) for path in _folders(folder)}
    if not any(found.values()):
        raise InputError("there is no image in a subfolder", where=str(folder), fix="store CLASS/NAME.png")
    if known is None:
        _check_filled(folder, found)
        return found
    _check_known(folder, list(found), known)
    return {name: found.get(name, []) for name in known}


def _check_filled(folder: Path, found: Mapping[str, list[Path]]) -> None:
    """A label that is never seen is an output of the network that learns nothing."""
    empty = [name for name, images in found.items() if not images]
    if empty:
        raise InputError(
            f"no image is in the folder of a class: {_few(empty)}",
            where=str(folder),
            fix="store its images there; or remove the folder, where the network has no such class",
        )


def _check_known(folder: Path, names: Sequence[str], known: Sequence[str]) -> None:
    strange = [name for name in names if name not in known]
    if strange:
        raise InputError(
            f"the training part has no class {_few(strange)}",
            where=str(folder),
            fix=f"name the folders as there: {_few(known)}",
        )


def _images(folder: Path) -> list[Path]:
    """At any depth; none that is hidden, or in a hidden folder."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(path for path in found if not any(map(_hidden, path.relative_to(folder).parts)))


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _hidden(path.name))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__"


def _first(named: dict[str, Path], names: Sequence[str]) -> Path | None:
    return next((named[name] for name in names if name in named), None)


def _few(names: Sequence[str]) -> str:
    return ", ".join([*names[:_LISTED], *(["..."] if len(names) > _LISTED else [])])
