"""Checkpoints of training on disk: written aside and renamed, found by listing, never half there.

``<directory>/step-00000120-0-supernet/`` is step 120 (over all phases) in phase 0. Each is also a checkpoint
of the model, which `dyncompile.load` reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from dyncompile.errors import CheckpointError
from dyncompile.files import aside_directory, publish_directory, remove_asides, remove_directory

_NAME = re.compile(r"step-(\d+)-(\d+)-[\w.-]+")


class Checkpoints:
    """The training checkpoints in one directory, which one process writes.

    Args:
        directory: is created if missing; every process must see it.
        keep: how many of the newest stay.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory = directory
        self._keep = max(keep, 1)

    def clean(self) -> None:
        """Make the directory, and delete what an interrupted process left unfinished."""
        self.directory.mkdir(parents=True, exist_ok=True)
        remove_asides(self.directory)

    def names(self) -> list[str]:
        """Complete checkpoints, oldest first."""
        found = [(_NAME.fullmatch(path.name), path) for path in self.directory.glob("step-*")]
        ordered = sorted(
            (int(match[1]), int(match[2]), path.name) for match, path in found if match and path.is_dir()
        )
        return [name for _, _, name in ordered]

    def newest(self) -> Path | None:
        """The checkpoint to go on from."""
        names = self.names()
        return self.directory / names[-1] if names else None

    def write(self, name: str, fill: Callable[[Path], object]) -> None:
        """`fill` a directory aside, then give it its name. What `fill` writes must be flushed to disk.

        Raises CheckpointError where another process has written this checkpoint since the training began.
        """
        path = self.directory / name
        aside = aside_directory(path)
        fill(aside)
        try:
            publish_directory(aside, path)
        except OSError:
            if not path.exists():
                raise
            raise CheckpointError(
                "this checkpoint is there already: another training writes to the same directory",
                where=str(path),
                fix="stop one of them, or give each a directory of its own",
            ) from None

    def prune(self, wanted: Iterable[str]) -> None:
        """Delete all but the newest ones and those that are still `wanted`."""
        names = self.names()
        for name in set(names[: -self._keep]) - set(wanted):
            remove_directory(self.directory / name)


def checkpoint_name(step: int, phase: int, label: str) -> str:
    """The name of the checkpoint after `step` steps, in or before phase number `phase`."""
    return f"step-{step:08d}-{phase}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', label) or 'phase'}"
