"""Foreign checkpoints: a state_dict in ``.pt``, ``.pth``, ``.bin``, ``.ckpt``, ``.safetensors``, or a folder.

Nothing in a file is run: pickles are read with ``weights_only=True``, always. A file that needs more than
tensors and plain containers is refused, and what it would have called is named.
"""

from __future__ import annotations

import difflib
import mmap
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dyncompile.errors import CheckpointError
from dyncompile.weights import INDEX_SUFFIX, open_weights, weight_map

WRAPPERS = (
    "state_dict",
    "model",
    "model_state_dict",
    "ema",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "net",
    "params",
)
"""Entries under which training scripts store the state_dict."""
FOLDER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""What holds the weights in a folder of Hugging Face's, the first that is there."""
PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""
_LISTED = 10
"""Mismatches of one kind that a message lists."""
_COUNTER = "num_batches_tracked"
"""Batch norms of old checkpoints lack this buffer; torch too loads them without it."""


def read_state_dict(path: str | os.PathLike[str], entry: str | None = None) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, without a wrapper's entry and without a wrapper's prefix.

    What the prefix is taken off may be the model's own attribute of that name: `load_state` puts it back.

    Args:
        path: a file, an index of shards, or a folder that holds one of `FOLDER`.
        entry: which of several state dicts in the file, e.g. ``"ema"``.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, holds more than tensors, or would call
            something to be read (which is not called).
    """
    file = _inside(Path(path))
    if not file.is_file():
        raise CheckpointError("there is no such file", where=str(file))
    if file.name.endswith(INDEX_SUFFIX):
        return _unprefixed(_tensors(_read_index(file), file))
    if file.suffix not in _READERS:
        raise CheckpointError(
            f"{file.name} is no file of weights that can be read here",
            where=str(file),
            fix=f"give a state_dict in one of: {', '.join(_READERS)}, or a folder with {FOLDER[0]}",
        )
    return _unprefixed(_tensors(_unwrapped(_READERS[file.suffix](file), file, entry), file))


def _inside(path: Path) -> Path:
    """The file itself, or what holds the weights in a folder."""
    if not path.is_dir():
        return path
    found = next((path / name for name in FOLDER if (path / name).is_file()), None)
    if found is None:
        raise CheckpointError(
            "the folder holds no weights under a name of Hugging Face's",
            where=str(path),
            fix=f"give the file itself, or a folder with one of: {', '.join(FOLDER)}",
        )
    return found


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put `state` into `model`, all of it or nothing.

    Names that the model ties to one tensor may be given once; other floating-point types are converted. A
    buffer that the model makes itself and does not store (position ids of older releases) may be given with
    the values that it has.

    Raises:
        CheckpointError: names, shapes or kinds of numbers differ; all are named, with the nearest names.
    """
    wanted = cast(dict[str, Tensor], model.state_dict(keep_vars=True))
    given = _without_derived(model, wanted, _with_ties(wanted, _within(wanted, state)))
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
    try:
        model.load_state_dict(given, strict=False)
    except (RuntimeError, NotImplementedError) as error:
        raise CheckpointError(f"the values cannot be copied into the model: {error}") from None


def _within(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """`state` under the names that fit best: as they are, with or without an attribute before all.

    With: the model's own attribute has a wrapper's name (``module``), which reading took for a wrapper.
    Without: that of a wrapping module (Lightning's ``self.net``).
    """
    own = _prefix(wanted)
    named = [state, {own + name: value for name, value in state.items()}]
    if len({name.partition(".")[0] for name in state}) == 1:
        named.append({name.partition(".")[2]: value for name, value in state.items()})
    return max(named, key=lambda one: sum(name in wanted for name in one))


# -- reading ----------------------------------------------------------------------------------------


def _read_pickle(file: Path) -> Any:
    _check_archive(file)
    _check_growth(file)
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


def _check_archive(file: Path) -> None:
    """Torch stores tensors as they are: a compressed archive is not torch's, and may unfold to any size."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # the older format, or damage that the reader will name
    unfolded = sum(entry.file_size for entry in entries)
    if unfolded > file.stat().st_size or any(entry.compress_type for entry in entries):
        raise CheckpointError(
            f"the file is a compressed archive of {unfolded:,} bytes, which torch.save does not write",
            where=str(file),
            fix="load it where you trust it, and torch.save model.state_dict() again",
        )


def _check_growth(file: Path) -> None:
    """Of what torch's reader calls, ``bytearray`` alone takes memory that the file need not hold: a number.

    Its name stands in the file as it is, whichever pickle of it says so: nothing is compressed.
    """
    if not file.stat().st_size:
        return  # the reader will say so
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(b"bytearray\n") >= 0:
            raise CheckpointError(
                "the file holds a bytearray, whose size nothing bounds; it was not made",
                where=str(file),
                fix="where you trust the file, save model.state_dict() of it and give that",
            )


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
        with open_weights(file) as opened:
            return {name: opened.get(name) for name in opened.shapes}
    except CheckpointError as error:
        raise CheckpointError(
            f"the file cannot be read as safetensors: {error.problem}", where=str(file)
        ) from None


def _read_index(file: Path) -> dict[Any, Any]:
    """The tensors of all shards; shards lie beside their index."""
    if file.name.endswith(f".safetensors{INDEX_SUFFIX}"):
        return _read_safetensors(file)
    found: dict[Any, Any] = {}
    for name in sorted(set(weight_map(file).values())):
        if Path(name).name != name or Path(name).suffix not in (".bin", ".pt", ".pth"):
            raise CheckpointError(f"the index names {name!r}, which is no shard beside it", where=str(file))
        if not file.with_name(name).is_file():
            raise CheckpointError(f"the shard {name} is missing", where=str(file))
        found.update(_unwrapped(_read_pickle(file.with_name(name)), file, None))
    return found


_READERS: Mapping[str, Callable[[Path], Any]] = {
    ".pt": _read_pickle,
    ".pth": _read_pickle,
    ".bin": _read_pickle,
    ".ckpt": _read_pickle,
    ".safetensors": _read_safetensors,
}


def _unwrapped(found: Any, file: Path, entry: str | None) -> dict[Any, Any]:
    if not isinstance(found, Mapping):
        raise CheckpointError(f"the file holds a {type(found).__name__}, not a state_dict", where=str(file))
    entries = dict(cast(Mapping[Any, Any], found))
    inside = [name for name in WRAPPERS if isinstance(entries.get(name), Mapping)]
    if entry is not None:
        inside = [name for name, value in entries.items() if name == entry and isinstance(value, Mapping)]
        if not inside:
            raise CheckpointError(
                f"the file has no state_dict under {entry!r}",
                where=str(file),
                fix=f"it holds: {_few(entries)}",
            )
    if len(inside) > 1:
        raise CheckpointError(
            f"the file holds several state_dicts: {', '.join(inside)}",
            where=str(file),
            fix="say which one you mean: --entry NAME, or read_state_dict(path, entry=NAME)",
        )
    return dict(entries[inside[0]]) if inside else entries


def _few(entries: Mapping[Any, Any]) -> str:
    return ", ".join([str(name) for name in entries][:_LISTED])


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
    if not isinstance(name, str) or not isinstance(value, Tensor):
        return False
    return value.layout is torch.strided and value.device.type == "cpu" and not value.is_quantized


def _unprefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = _prefix(state)
    return {name.removeprefix(prefix): value for name, value in state.items()}


def _prefix(names: Collection[str]) -> str:
    """What looks like a wrapper's before all of the names; empty for nothing."""
    for prefix in PREFIXES:
        if names and all(name.startswith(prefix) for name in names):
            return prefix + _prefix([name.removeprefix(prefix) for name in names])
    return ""


# -- fitting ----------------------------------------------------------------------------------------


def _with_ties(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state`, and under every name that the model ties to a given one the same values."""
    first = {id(tensor): state[name] for name, tensor in reversed([*wanted.items()]) if name in state}
    tied = {name: first[id(tensor)] for name, tensor in wanted.items() if id(tensor) in first}
    return {**tied, **state}


def _without_derived(
    model: nn.Module, wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """`given` less what the model holds already, value for value, in buffers that no state dict of it has."""
    made = {name: buffer for name, buffer in model.named_buffers() if name not in wanted}
    return {
        name: value
        for name, value in given.items()
        if name not in made or not torch.equal(made[name].cpu(), value)
    }


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
