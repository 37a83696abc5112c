"""Tensors on disk: one safetensors file, or several with an index as Hugging Face writes them.

    model.safetensors                        all tensors, where they fit under the limit
    model-00001-of-00003.safetensors ...     else as many files as needed, and
    model.safetensors.index.json             {"metadata": {"total_size": ...}, "weight_map": {name: file}}

Only headers are read before names and shapes are compared, and no header can ask for more memory than its
file is long.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from dyncompile.errors import CheckpointError, SpecError
from dyncompile.files import NEXT, current
from dyncompile.torchlib import open_tensors, read_tensor, write_tensors

SHARD_SIZE = 5_000_000_000
"""Bytes of tensors per file, at most; a single larger tensor has a file of its own."""
INDEX_SUFFIX = ".index.json"
_SHARD = re.compile(r"[\w-][\w.-]*\.safetensors")
_DAMAGE = (
    *(SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError),
    RuntimeError,  # a file that is gone since its header was read
)


def write_weights(folder: Path, tensors: Mapping[str, Tensor], name: str, limit: int = SHARD_SIZE) -> str:
    """Write contiguous CPU tensors as `name`, or as shards of it; returns the file to read them by.

    Raises:
        SpecError: the limit is below 1.
    """
    if limit < 1:
        raise SpecError(f"a shard holds at least one byte, got {limit}")
    shards = list(_split(tensors, limit))
    if len(shards) == 1:
        write_tensors(shards[0], folder / name)
        return name
    stem = name.removesuffix(".safetensors")
    files = [f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        write_tensors(shard, folder / file)
    index = {
        "metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
        "weight_map": {key: file for file, shard in zip(files, shards, strict=True) for key in shard},
    }
    (folder / f"{name}{INDEX_SUFFIX}").write_text(json.dumps(index, indent=2) + "\n")
    return f"{name}{INDEX_SUFFIX}"


def is_shard_of(file: str, name: str) -> bool:
    """Whether `file` is one that `write_weights` makes for `name`."""
    stem = re.escape(name.removesuffix(".safetensors"))
    return file in (name, f"{name}{INDEX_SUFFIX}") or bool(
        re.fullmatch(rf"{stem}-\d{{5}}-of-\d{{5}}\.safetensors", file)
    )


def _split(tensors: Mapping[str, Tensor], limit: int) -> Iterator[dict[str, Tensor]]:
    """At least one part, in order."""
    part, size = dict[str, Tensor](), 0
    for name, tensor in tensors.items():
        if part and size + tensor.nbytes > limit:
            yield part
            part, size = {}, 0
        part[name] = tensor
        size += tensor.nbytes
    yield part


@dataclass(frozen=True)
class Tensors:
    """Open files: the shape of every tensor, and its values on demand."""

    path: Path
    shapes: Mapping[str, list[int]]
    _files: Mapping[str, Any]

    def get(self, name: str) -> Tensor:
        """One tensor. Raises CheckpointError where it is damaged."""
        try:
            return read_tensor(self._files[name], name)
        except _DAMAGE as error:
            raise CheckpointError(f"{self.path} is damaged: {name}: {error}") from None


@contextmanager
def open_weights(path: Path) -> Generator[Tensors]:
    """Open a safetensors file or an index of several; its shards lie beside it.

    Raises:
        CheckpointError: a file is missing or damaged, the index and the shards disagree, or the index names a
            file elsewhere.
    """
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        shapes: dict[str, list[int]] = {}
        for file in _files_of(path):
            opened = stack.enter_context(_opened(file))
            try:
                held = {name: list(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
            except _DAMAGE as error:
                raise CheckpointError(f"{file} is damaged: {error}") from None
            shapes.update(held)
            files.update(dict.fromkeys(held, opened))
        _compare_index(path, shapes)
        yield Tensors(path, shapes, files)


def _opened(file: Path) -> Any:
    try:
        return open_tensors(file)
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing") from None
    except _DAMAGE as error:
        raise CheckpointError(f"{file} is damaged: {error}") from None


def _files_of(path: Path) -> list[Path]:
    if not path.name.endswith(INDEX_SUFFIX):
        return [path]
    names = sorted(set(weight_map(path).values()))
    strange = [name for name in names if not _SHARD.fullmatch(name)]
    if strange:
        raise CheckpointError.of_all(f"{path} names files that are no shards beside it", strange)
    folder = path.parent.parent if path.parent.name == NEXT else path.parent
    return [current(folder, name) for name in names]


def weight_map(path: Path) -> dict[str, str]:
    """Tensor name -> file name of an index. Raises CheckpointError where it is missing or damaged."""
    try:
        found: Any = json.loads(path.read_bytes())["weight_map"]
        if found and all(type(value) is str for value in found.values()):
            return found
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except _DAMAGE as error:
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {error}") from None
    raise CheckpointError(f"{path} maps no tensor to a file")


def _compare_index(path: Path, shapes: Mapping[str, list[int]]) -> None:
    if path.name.endswith(INDEX_SUFFIX):
        apart = sorted(set(weight_map(path)) ^ set(shapes))
        if apart:
            raise CheckpointError.of_all(f"{path} and its shards disagree on", apart)


def compare_keys(wanted: Mapping[str, list[int]], found: Mapping[str, list[int]]) -> list[str]:
    """Every missing, unexpected or misshapen key, in words."""
    problems = [f"missing: {name} {shape}" for name, shape in wanted.items() if name not in found]
    problems += [f"unexpected: {name} {shape}" for name, shape in found.items() if name not in wanted]
    problems += [
        f"shape of {name}: {found[name]} in the file, {shape} in the model"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    return problems
