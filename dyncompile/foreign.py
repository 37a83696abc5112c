"""Foreign checkpoints: a plain state_dict in ``.pt``, ``.pth`` or ``.safetensors``.

Nothing in a file is run: pickles are read with ``weights_only=True``, always. A file that needs more than
tensors and plain containers is refused, and what it would have called is named.
"""

from __future__ import annotations

import difflib
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from dyncompile.errors import CheckpointError

WRAPPERS = ("state_dict", "model", "model_state_dict")
"""Entries under which training scripts store the state_dict."""
PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""
_LISTED = 10
"""Mismatches of one kind that a message lists."""
_COUNTER = "num_batches_tracked"
"""Batch norms of old checkpoints lack this buffer; torch too loads them without it."""


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, without a wrapper's entry and without a wrapper's prefix.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, holds more than tensors, or would call
            something to be read (which is not called).
    """
    file = Path(path)
    if file.suffix not in _READERS:
        raise CheckpointError(
            f"{file.name} is no file of weights that can be read here",
            where=str(file),
            fix=f"give a state_dict in one of: {', '.join(_READERS)}",
        )
    if not file.is_file():
        raise CheckpointError("there is no such file", where=str(file))
    return _unprefixed(_tensors(_unwrapped(_READERS[file.suffix](file), file), file))


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put `state` into `model`, all of it or nothing.

    Names that the model ties to one tensor may be given once; other floating-point types are converted.

    Raises:
        CheckpointError: names, shapes or kinds of numbers differ; all are named, with the nearest names.
    """
    wanted = cast(dict[str, Tensor], model.state_dict(keep_vars=True))
    given = _with_ties(wanted, state)
    missing = [name for name in wanted if name not in given and not name.endswith(f".{_COUNTER}")]
    extra = [name for name in given if name not in wanted]
    problems = [
        *_some(
            "missing",
            [f"{name}{_nearest(name, extra, 'the file has')}" for name in missing[:_LISTED]],
            missing,
        ),
        *_some(
            "unexpected", [f"{n}{_nearest(n, missing, 'the model wants')}" for n in extra[:_LISTED]], extra
        ),
        *_misfits(wanted, given),
    ]
    if problems:
        raise CheckpointError.of_all(
            f"the checkpoint does not fit {type(model).__name__}",
            problems,
            fix="name the architecture that it was saved from, or rename its entries",
        )
    model.load_state_dict(given, strict=False)


# -- reading ----------------------------------------------------------------------------------------


def _read_pickle(file: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file can make the reader fail in any way
        raise CheckpointError(
            _cause(error),
            where=str(file),
            fix="where you trust the file, save model.state_dict() of it and give that",
        ) from None


def _cause(error: Exception) -> str:
    """The reader's reason without its advice to switch the safety off."""
    text = str(error)
    refused = re.search(r"GLOBAL ([\w.]+)", text)
    if refused:
        return f"the file holds more than tensors: reading it would call {refused[1]}; it was not called"
    reason = re.search(r"WeightsUnpickler error:\s*(.*)", text)
    first = reason[1] if reason else text.split(". In PyTorch", 1)[0].split("\n", 1)[0]
    return f"the file cannot be read as weights: {type(error).__name__}: {first}"


def _read_safetensors(file: Path) -> Any:
    try:
        return cast(Any, safetensors.torch).load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"the file cannot be read as safetensors: {error}", where=str(file)) from None


_READERS: Mapping[str, Callable[[Path], Any]] = {
    ".pt": _read_pickle,
    ".pth": _read_pickle,
    ".safetensors": _read_safetensors,
}


def _unwrapped(found: Any, file: Path) -> dict[Any, Any]:
    if not isinstance(found, Mapping):
        raise CheckpointError(f"the file holds a {type(found).__name__}, not a state_dict", where=str(file))
    entries = dict(cast(Mapping[Any, Any], found))
    inside = [name for name in WRAPPERS if isinstance(entries.get(name), Mapping)]
    if len(inside) > 1:
        raise CheckpointError(
            f"the file holds several state_dicts: {', '.join(inside)}",
            where=str(file),
            fix="save the one you mean",
        )
    return dict(entries[inside[0]]) if inside else entries


def _tensors(entries: Mapping[Any, Any], file: Path) -> dict[str, Tensor]:
    others = [
        f"{name}: {type(value).__name__}" for name, value in entries.items() if not _is_entry(name, value)
    ]
    if others:
        raise CheckpointError.of_all(
            f"{file} has entries that are no tensors",
            [*others[:_LISTED], *_and_more(others)],
            fix=f"give a plain state_dict, or one under {' or '.join(WRAPPERS)}",
        )
    if not entries:
        raise CheckpointError("the file holds no tensor", where=str(file))
    return dict(entries)


def _is_entry(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor) and value.layout is torch.strided


def _unprefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state):
            return _unprefixed({name.removeprefix(prefix): value for name, value in state.items()})
    return state


# -- fitting ----------------------------------------------------------------------------------------


def _with_ties(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state`, and under every name that the model ties to a given one the same values."""
    first = {id(tensor): state[name] for name, tensor in reversed([*wanted.items()]) if name in state}
    tied = {name: first[id(tensor)] for name, tensor in wanted.items() if id(tensor) in first}
    return {**tied, **state}


def _misfits(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    both = [(name, given[name], wanted[name]) for name in wanted if name in given]
    shapes = [
        f"{n} is {list(a.shape)} in the file, {list(b.shape)} in the model"
        for n, a, b in both
        if a.shape != b.shape
    ]
    kinds = [
        f"{n} is {a.dtype} in the file, {b.dtype} in the model"
        for n, a, b in both
        if a.is_floating_point() != b.is_floating_point()
    ]
    return [*_some("shape", shapes[:_LISTED], shapes), *_some("numbers", kinds[:_LISTED], kinds)]


def _some(kind: str, shown: Iterable[str], every: list[str]) -> list[str]:
    return [*(f"{kind}: {one}" for one in shown), *(f"{kind}: {more}" for more in _and_more(every))]


def _and_more(every: list[str]) -> list[str]:
    return [f"and {len(every) - _LISTED} more"] if len(every) > _LISTED else []


def _nearest(name: str, others: list[str], who: str) -> str:
    close = difflib.get_close_matches(name, others, 1)
    return f" ({who} {close[0]})" if close else ""
