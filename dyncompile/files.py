"""Writing to disk so that a reader, or a later process, sees the old content or the new one, never a part."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

ASIDE = ".aside."
"""Prefix of what is being written or deleted; after a crash it may stay behind and is worth nothing."""
NEXT = ".next"
"""A complete set of files that is being moved into the directory that it lies in; see `replace_files`."""


def is_passing(name: str) -> bool:
    """Whether a file or directory of this name is there only while others are being replaced."""
    return name == NEXT or name.startswith(ASIDE)


def replace_file(path: Path, content: bytes) -> None:
    """Write aside, flush to disk, rename: a reader sees the old file or the new one, never a part."""
    aside = _aside(path)
    try:
        with open(aside, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def replace_files(directory: Path, fill: Callable[[Path], object]) -> None:
    """Replace several files of a directory at once; its other files stay.

    `fill` writes them to a directory aside, which is then renamed to `NEXT`: from that moment on they are
    what `current` finds. Moving them to their places follows and may be interrupted anywhere: whoever writes
    there next goes on with it.

    Args:
        directory: is created if missing. One process writes there at a time.
        fill: writes files into the directory that it is given; flushing them is done here.
    """
    directory.mkdir(parents=True, exist_ok=True)
    finish_replacing(directory)
    for stale in directory.glob(f"{ASIDE}{NEXT}.*"):
        shutil.rmtree(stale)
    with new_directory(directory / NEXT) as aside:
        fill(aside)
    finish_replacing(directory)


def finish_replacing(directory: Path) -> None:
    """Go on with a replacement that is under way, if there is one."""
    coming = directory / NEXT
    if coming.is_dir():
        for path in sorted(coming.iterdir()):
            os.replace(path, directory / path.name)
        flush_directory(directory)
        coming.rmdir()


def current(directory: Path, name: str) -> Path:
    """Where a file of `directory` lies, also while its replacement is under way."""
    coming = directory / NEXT / name
    return coming if coming.exists() else directory / name


@contextmanager
def new_directory(path: Path) -> Generator[Path]:
    """A directory aside, which gets its name and is flushed at the end; an error leaves nothing behind.

    Args:
        path: must not exist; its parent must. Files in the directory are flushed, deeper ones are not.
    """
    aside = aside_directory(path)
    try:
        yield aside
        for file in aside.iterdir():
            _flush(file)
        publish_directory(aside, path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def aside_directory(path: Path) -> Path:
    """A new directory beside `path`, to be filled and then given to `publish_directory`."""
    aside = _aside(path)
    aside.mkdir()
    return aside


def publish_directory(aside: Path, path: Path) -> None:
    """Give a filled directory its name; `path` must not exist. Its files must be on disk already."""
    flush_directory(aside)
    os.rename(aside, path)
    flush_directory(path.parent)


def remove_directory(path: Path) -> None:
    """Delete a directory so that it never stands there in part under its own name."""
    aside = _aside(path)
    os.rename(path, aside)
    shutil.rmtree(aside)


def remove_asides(directory: Path) -> None:
    """Delete what an interrupted process left half-written in `directory`."""
    for path in directory.glob(f"{ASIDE}*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def flush_directory(path: Path) -> None:
    """Flush the names in a directory to disk, where the system can (Windows cannot open directories)."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _aside(path: Path) -> Path:
    return path.with_name(f"{ASIDE}{path.name}.{uuid4().hex}")
