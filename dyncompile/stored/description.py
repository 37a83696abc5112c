"""``program.json``: what a checkpoint says about itself, and how its files are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dyncompile.errors import CheckpointError
from dyncompile.files import current, is_passing
from dyncompile.stored.casts import are_casts
from dyncompile.stored.sizes import are_sizes
from dyncompile.weights import is_shard_of

FORMAT = "dyncompile"
VERSION = 3
"""2 added graphs, constants and shards, 3 casts. Whatever an older release could not read raises it.

Graphs at further sizes did not: a release that does not look for them asks for the source, as it always did.
What was never cast is written as version 2.
"""
PROGRAM, WEIGHTS, GRAPH, CONSTANTS = (
    "program.json",
    "model.safetensors",
    "graph.json",
    "constants.safetensors",
)


def is_ours(name: str) -> bool:
    """Whether `save` writes files of this name."""
    return name in (PROGRAM, GRAPH) or is_shard_of(name, WEIGHTS) or is_shard_of(name, CONSTANTS)


def holds_checkpoint(folder: Path) -> bool:
    """Whether `save` has written to a folder."""
    try:
        return json.loads(current(folder, PROGRAM).read_text())["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def check_place(folder: Path, *, alone: bool = False) -> None:
    """Raise CheckpointError before somebody else's files are replaced, or have a checkpoint among them.

    Args:
        folder: where `save` is to write.
        alone: what `save` would leave as it is, is refused too.
    """
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    ours = [name for name in names if is_ours(name)]
    others = [name for name in names if not (is_ours(name) or is_passing(name))]
    found = [*(others if alone else ()), *(() if holds_checkpoint(folder) else ours)]
    if found:
        raise CheckpointError(
            f"the directory holds other files: {', '.join(found[:5])}",
            where=str(folder),
            fix="name a new or an empty directory, or move them away",
        )


def read_description(folder: Path) -> dict[str, Any]:
    """What ``program.json`` says. Raises CheckpointError where it is missing, damaged or too new."""
    path = current(folder, PROGRAM)
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing", fix="give the directory that dyncompile.save wrote"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if type(found) is not dict or found.get("format") != FORMAT:
        raise CheckpointError(f"{path} does not describe a dyncompile model")
    if type(found.get("version")) is not int or not 1 <= found["version"] <= VERSION:
        raise CheckpointError(
            f"{path} has format version {found.get('version')!r}, this release reads up to {VERSION}",
            fix="update dyncompile: a newer release wrote it",
        )
    if found["version"] == 1:
        found = {"weights": WEIGHTS, "graph": None, "constants": None, **found}
    found = {"sizes": [], "casts": [], **found}
    expected: dict[str, Any] = {
        "source": str | None,
        "inputs": dict,
        "history": list,
        "fingerprint": str,
        "weights": str,
        "graph": str | None,
        "constants": str | None,
    }
    wrong = [key for key, kind in expected.items() if key not in found or not isinstance(found[key], kind)]
    wrong += [key for key in ("weights", "graph", "constants") if not _names_ours(found.get(key))]
    wrong += [] if are_sizes(found["sizes"]) else ["sizes"]
    wrong += [] if are_casts(found["casts"]) else ["casts"]
    if wrong:
        raise CheckpointError.of_all(f"{path} lacks or garbles entries", list(dict.fromkeys(wrong)))
    return found


def _names_ours(name: Any) -> bool:
    """Files are named by the description, but none outside of what `save` writes is opened."""
    return name is None or (isinstance(name, str) and is_ours(name))
