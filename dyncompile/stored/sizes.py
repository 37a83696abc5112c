"""The captured network at other sizes of an input: what a checkpoint keeps of a program that has several.

    {"input": 0, "size": [112, 112], "graphs": {...}, "state": [...]}
    {"input": 0, "size": [100, 100], "refused": "it does not take 100: ..."}

The state has the source's names; what a size has for itself (norms, constants) says under which name the
checkpoint holds it, all else is the native size's. Calls differ from the native ones in that input alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

from torch import Tensor, fx

from dyncompile.errors import CaptureError, CheckpointError
from dyncompile.program import Mode, Program, size_label
from dyncompile.signature import Signature
from dyncompile.state import state_tensors
from dyncompile.stored.graphs import describe_graphs, restore_graphs
from dyncompile.stored.state import constants_of, describe_entry, held_names, restore_state, source_state
from dyncompile.stored.values import first_line
from dyncompile.variants import SIZES, at, names_in_whole

_LARGEST = 1 << 20

Size = tuple[int, tuple[int, int]]
"""Position of the input among the flat inputs, and its (height, width)."""


def is_of_a_size(name: str) -> bool:
    """Whether state of this name belongs to one size of an input."""
    return name.startswith(f"{SIZES}.")


def sizes_of(program: Program) -> list[list[int]]:
    """The [height, width] of all that `describe_sizes` keeps."""
    variants = program.variants
    return [] if variants is None else [list(variants.sizes[column]) for column in variants.others]


def are_sizes(found: Any) -> bool:
    """Whether a file holds what `sizes_of` gives."""
    return type(found) is list and all(_is_size(one) for one in cast("list[Any]", found))


def _is_size(one: Any) -> bool:
    return type(one) is list and list(map(type, cast("list[Any]", one))) == [int, int]


# -- to data ----------------------------------------------------------------------------------------


def describe_sizes(program: Program) -> list[dict[str, Any]]:
    """JSON of the network at every size but the native one. Raises ValueError as `describe_network` does."""
    variants = program.variants
    if variants is None:
        return []
    kept = [
        {"input": variants.image, "size": list(variants.sizes[column]), **_described(program, column)}
        for column in variants.others
    ]
    refused = [
        {"input": variants.image, "size": list(size), "refused": reason}
        for size, reason in variants.refused.items()
    ]
    return kept + refused


def _described(program: Program, column: int) -> dict[str, Any]:
    one, held = at(program, column), names_in_whole(program, column)
    return {
        "graphs": describe_graphs(one.origin),
        "state": [describe_entry(entry, held[entry.name]) for entry in source_state(one)],
    }


def constants_of_sizes(program: Program) -> dict[str, Tensor]:
    """State that sizes have for themselves and state dicts leave out, by its name in the whole program."""
    found: dict[str, Tensor] = {}
    for column in program.variants.others if program.variants else ():
        held = names_in_whole(program, column)
        constants = constants_of(source_state(at(program, column)))
        found.update({held[name]: value for name, value in constants.items() if is_of_a_size(held[name])})
    return found


# -- from data --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kept:
    """One size: its graphs, and how its state is put together from the program's and its own tensors."""

    graphs: Mapping[Mode, fx.Graph]
    signature: Signature
    entries: Any
    own: Mapping[str, Tensor]

    def over(self, program: Program) -> Program:
        own = {name: value.clone() for name, value in self.own.items()}
        state = restore_state(self.entries, {**own, **state_tensors(program.state)})
        return Program(graphs=self.graphs, state=state, signature=self.signature)


@dataclass(frozen=True)
class StoredSizes:
    """The source of a program that was loaded without its code: the sizes that its checkpoint keeps."""

    kept: Mapping[Size, _Kept] = field(default_factory=dict[Size, _Kept])
    refused: Mapping[Size, str] = field(default_factory=dict[Size, str])

    def sized(self, program: Program, image: int, size: tuple[int, int]) -> Program:
        """The network at a size that the checkpoint keeps. Raises CaptureError for others."""
        found = self.kept.get((image, size))
        if found is not None:
            return found.over(program)
        if (image, size) in self.refused:
            raise CaptureError(self.refused[image, size])
        kept = ", ".join(size_label(size) for at, size in self.kept if at == image) or "no other size"
        raise CaptureError(
            "a size is captured from the network's code, which is not at hand; the checkpoint keeps graphs "
            f"of {kept}; give the source: load(dir, source=model)"
        )


def restore_sizes(described: Any, program: Program, tensors: Mapping[str, Tensor]) -> Program:
    """`program`, the network at its native size, with a source that has the other sizes.

    Raises:
        CheckpointError: a size is damaged, or calls what it may not.
    """
    own = {name: value for name, value in tensors.items() if is_of_a_size(name)}
    kept: dict[Size, _Kept] = {}
    refused: dict[Size, str] = {}
    for key, one in _named(described, program.signature):
        try:
            if "refused" in one:
                refused[key] = str(one["refused"])
            else:
                kept[key] = _restored(key, one, program, own)
        except Exception as error:  # as in `restore_network`
            what = f"the stored graph of size {size_label(key[1])}"
            raise CheckpointError(f"{what} is damaged: {first_line(error)}") from None
    return replace(program, source=StoredSizes(kept, refused))


def _named(described: Any, signature: Signature) -> Iterator[tuple[Size, Any]]:
    """Every entry with what it is of. Raises ValueError, KeyError or TypeError."""
    for one in described:
        height, width = one["size"]
        yield _named_size(signature, one["input"], height, width), one


def _named_size(signature: Signature, image: Any, height: Any, width: Any) -> Size:
    if not all(type(n) is int and 0 <= n < _LARGEST for n in (image, height, width)):
        raise ValueError(f"size {height}x{width} of input {image}")
    shape = signature.leaves[int(image)].shape
    if shape is None or len(shape) != 4:
        raise ValueError(f"input {image} has no height and width")
    return image, (height, width)


def _restored(key: Size, one: Any, program: Program, own: Mapping[str, Tensor]) -> _Kept:
    signature, entries = _sized(program.signature, *key), one["state"]
    state = restore_state(entries, {**own, **state_tensors(program.state)})
    graphs = restore_graphs(one["graphs"], state, signature)
    return _Kept(graphs, signature, entries, {name: own[name] for name in held_names(entries) if name in own})


def _sized(signature: Signature, image: int, size: tuple[int, int]) -> Signature:
    """The signature with one input at another size."""
    native = signature.leaves[image]
    assert native.shape is not None
    leaf = replace(native, shape=(*native.shape[:2], *size))
    return replace(signature, leaves=(*signature.leaves[:image], leaf, *signature.leaves[image + 1 :]))
