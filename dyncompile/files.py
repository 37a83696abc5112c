"""Writing to disk so that a reader, or a later process, sees the old content or the new one, never a part."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from uuid import uuid4

ASIDE = ".aside."
"""Prefix of what is being written or deleted; after a crash it may stay behind and is worth nothing."""


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


def _aside(path: Path) -> Path:
    return path.with_name(f"{ASIDE}{path.name}.{uuid4().hex}")
