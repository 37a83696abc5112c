"""The work of ``dyncompile convert``: read, fit, dynamize, verify, and only then write, all or nothing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from dyncompile.checkpoint import save
from dyncompile.cli.models import Loaded, load_model, make_dynamic
from dyncompile.errors import CheckpointError
from dyncompile.foreign import load_state, read_state_dict
from dyncompile.spec import parse_specs
from dyncompile.stored.description import check_place
from dyncompile.verify import Report, verify

Busy = Callable[[str], AbstractContextManager[object]]
"""Shows what is being done for as long as the context is open."""


@dataclass(frozen=True)
class Conversion:
    """What was written, and that it keeps its contract."""

    loaded: Loaded
    tensors: int
    report: Report
    folder: Path


def convert_checkpoint(
    checkpoint: Path,
    arch: str,
    method: Sequence[str],
    folder: Path,
    busy: Busy,
    *,
    entry: str | None = None,
) -> Conversion:
    """Make a dynamic checkpoint in `folder` from a static model's; what is cheap to refuse is refused first.

    Raises:
        SpecError: the method or the architecture cannot be understood.
        CheckpointError: the file or the folder cannot be used, or the file belongs to another model.
        ContractError: the dynamic model breaks its contract; nothing is written.
    """
    passes = parse_specs(list(method), {})
    check_folder(folder)
    with busy(f"reading {checkpoint}"):
        state = read_state_dict(checkpoint, entry)
    with busy(f"building {arch}"):
        source = load_model(arch)
        load_state(source.model, state)
    with busy("capturing, planning, rewriting"):
        loaded = make_dynamic(source, passes)
    with busy("checking the contract"):
        report = verify(loaded.dyn, source.model, loaded.example)
    with busy(f"writing {folder}"):
        write(loaded, folder)
    return Conversion(loaded, len(state), report, folder)


def check_folder(folder: Path) -> None:
    """Raise CheckpointError unless `folder` can be created, is empty, or holds an earlier result alone."""
    if folder.is_dir():
        return check_place(folder, alone=True)
    if folder.exists():
        raise CheckpointError("the output exists and is no directory", where=str(folder), fix="name another")
    parent = next(path for path in folder.absolute().parents if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise CheckpointError("the output directory cannot be created", where=str(folder), fix="name another")


def write(loaded: Loaded, folder: Path) -> None:
    """Write the checkpoint; a new directory appears when it is complete, an old one changes at once."""
    try:
        if folder.exists():
            save(loaded.dyn, folder, source=loaded.source.name)
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as aside:
            save(loaded.dyn, Path(aside) / folder.name, source=loaded.source.name).rename(folder)
    except OSError as error:
        raise CheckpointError(f"the result cannot be written: {error}", where=str(folder)) from None
