"""From whatever a loader yields to a `Batch`, and what can be asked of one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils import data as torch_data

from dyncompile.errors import InputError
from dyncompile.program import Program
from dyncompile.torchlib import items
from dyncompile.train.phase import Batch

_collate: Any = cast(Any, torch_data).default_collate

LABELS = "labels"
"""The key of Hugging Face's samples that holds the target."""


def as_batch(raw: Any, program: Program) -> Batch:
    """One batch in the form that `fit` computes with.

    A pair is (input, target), a longer tuple (*inputs, target); an input may be a tuple of positional or a
    dict of keyword arguments. A dict is keyword arguments as in Hugging Face: `labels` is the target, unless
    the model was captured with labels of its own; columns that `forward` does not know are left out. A tensor
    alone has no target.

    Raises:
        InputError: another type.
    """
    if isinstance(raw, Batch):
        return raw
    if isinstance(raw, Tensor):
        return Batch((raw,), {}, None)
    if isinstance(raw, Mapping):
        return _from_mapping(cast("Mapping[str, Any]", raw), program)
    if isinstance(raw, list | tuple) and raw:
        return _from_sequence(items(raw))
    kind = type(raw).__name__  # pyright: ignore[reportUnknownArgumentType]
    raise InputError(
        f"a batch is a tensor, a tuple (input, target) or a dict, got {kind}",
        fix="let the loader yield one of these, or dyncompile.train.Batch",
    )


def _from_sequence(parts: list[Any]) -> Batch:
    if len(parts) > 2:
        return Batch(tuple(parts[:-1]), {}, parts[-1])
    given, target = parts[0], parts[1] if len(parts) == 2 else None
    if isinstance(given, Mapping):
        return Batch((), dict(cast("Mapping[str, Any]", given)), target)
    return Batch(tuple(items(given)), {}, target)


def _from_mapping(named: Mapping[str, Any], program: Program) -> Batch:
    signature = program.signature
    parameters = signature.forward.parameters
    # Hugging Face's models take any keyword; only one that was captured with some has a use for them.
    open_ended = any(
        p.kind is inspect.Parameter.VAR_KEYWORD and name in signature.captured_names
        for name, p in parameters.items()
    )
    own_loss = LABELS in signature.captured_names
    kwargs = {
        key: value
        for key, value in named.items()
        if (key in parameters or open_ended) and (key != LABELS or own_loss)
    }
    return Batch((), kwargs, None if own_loss else named.get(LABELS))


def rows_of(batch: Batch) -> int:
    """Samples in a batch: the leading size of its first tensor."""
    leaves = pytree.tree_leaves((batch.args, dict(batch.kwargs)))
    return next((len(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()), 1)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with all its tensors on `device`."""

    def move(value: Any) -> Any:
        return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

    args, kwargs, target = pytree.tree_map(move, (batch.args, dict(batch.kwargs), batch.target))
    return Batch(args, kwargs, target)


def collate(samples: Sequence[Any]) -> Any:
    """Samples stacked into a batch; lists of numbers in dict samples (Hugging Face) count as tensors.

    Raises:
        InputError: samples of different shapes, or that hold something other than numbers.
    """
    try:
        return _collate([_with_tensors(sample) for sample in samples])
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"samples cannot be stacked into a batch: {error}",
            fix="give samples of tensors of one shape, or a DataLoader whose collate function pads them",
        ) from None


def _with_tensors(sample: Any) -> Any:
    if not isinstance(sample, Mapping):
        return sample
    named = cast("Mapping[str, Any]", sample)
    return {key: _as_tensor(value) if isinstance(value, list) else value for key, value in named.items()}


def _as_tensor(value: Any) -> Any:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError):
        return value
