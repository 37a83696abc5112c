"""Rows of a batch in typed tensors: take some, put parts together.

The type says which axis holds the batch, and how many positions of it belong to one row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dyncompile.analysis.dims.algebra import BATCH, factor_size
from dyncompile.analysis.dims.call import TensorType, Type, flat_types
from dyncompile.errors import InputError
from dyncompile.torchlib import items


def batch_axis(found: Type) -> int | None:
    """The axis that has the batch as its outermost factor; None without one."""
    dims = found if isinstance(found, tuple) else ()
    return next((axis for axis, dim in enumerate(dims) if dim[:1] == (BATCH,)), None)


def rows_in(dims: TensorType) -> tuple[int, int] | None:
    """(the axis that has the batch among its factors, the product of those before it); None without one.

    Attention that puts positions first lays rows out as ``[T x B, D]``: there the second number is T.
    """
    for axis, dim in enumerate(dims):
        if BATCH in dim:
            return axis, math.prod(factor_size(factor) for factor in dim[: dim.index(BATCH)])
    return None


def has_rows(found: Type) -> bool:
    """Whether a value, or one of several, holds something for every row of the batch."""
    return any(rows_in(dims) is not None for dims in flat_types(found))


def elements_per_row(found: Type) -> int:
    """Numbers per row of a typed value; 0 where it has no rows."""
    if isinstance(found, list):
        return sum(map(elements_per_row, found))
    if not isinstance(found, tuple) or rows_in(found) is None:
        return 0
    return math.prod(factor_size(factor) for dim in found for factor in dim if factor != BATCH)


def select_rows(value: Any, found: Type, index: Tensor, rows: int) -> Any:
    """The given rows [n] of a value that holds `rows` of them; what has no rows stays as it is."""
    if isinstance(found, list):
        return [select_rows(v, f, index, rows) for v, f in zip(items(value), found, strict=True)]
    place = _place(value, found)
    if place is None:
        return value
    axis, outer = place
    at = index.to(value.device)
    if value.shape[axis] == rows:
        return value.index_select(axis, at)
    by_row = value.unflatten(axis, (outer, rows, -1))
    return by_row.index_select(axis + 1, at).flatten(axis, axis + 2)


def rows_between(value: Any, found: Type, start: int, end: int, rows: int) -> Any:
    """Rows `start` to `end` of a value that holds `rows` of them, as views; see `select_rows`."""
    if isinstance(found, list):
        parts = zip(items(value), found, strict=True)
        return [rows_between(v, f, start, end, rows) for v, f in parts]
    axis = batch_axis(found)
    if axis is None or not isinstance(value, Tensor):
        return value
    each = value.shape[axis] // rows
    return value.narrow(axis, start * each, (end - start) * each)


def join_rows(values: Sequence[Any], found: Type) -> Any:
    """Parts of a value one behind the other by their rows; what has no rows is the same in all."""
    if len(values) == 1:
        return values[0]
    if isinstance(found, list):
        parts = zip(*map(items, values), strict=True)
        return [join_rows(part, f) for part, f in zip(parts, found, strict=True)]
    place = _place(values[0], found)
    if place is None:
        return values[0]
    axis, outer = place
    if outer == 1:
        return torch.cat(list(values), axis)
    by_position = [value.unflatten(axis, (outer, -1)) for value in values]
    return torch.cat(by_position, axis + 1).flatten(axis, axis + 1)


def _place(value: Any, found: Type) -> tuple[int, int] | None:
    return rows_in(found) if isinstance(value, Tensor) and isinstance(found, tuple) else None


def is_in_order(rows: Tensor) -> bool:
    """Whether positions [n] are 0, 1, 2, ...: parts that met again hold theirs one behind the other."""
    return len(rows) < 2 or bool((rows == torch.arange(len(rows))).all())


def merge_outputs(parts: Sequence[Sequence[Any]], rows: Tensor, types: Sequence[Type]) -> list[Any]:
    """Flat outputs of groups of rows, which lie at the positions `rows` [B], in the order of the batch."""
    if len(parts) == 1 and is_in_order(rows):
        return list(parts[0])
    order = torch.empty_like(rows)
    order[rows] = torch.arange(len(rows))
    return [
        _merge_one(list(values), found, order)
        for values, found in zip(zip(*parts, strict=True), types, strict=True)
    ]


def _merge_one(values: list[Any], found: Type, order: Tensor) -> Any:
    """One output of all groups, its rows back in order."""
    if not isinstance(values[0], Tensor):
        if any(value != values[0] for value in values):
            raise InputError(
                "an output that is not a tensor depends on the route", fix="run one route at a time"
            )
        return values[0]
    if _place(values[0], found) is None:
        raise InputError(
            "an output has no batch axis, so results of different routes cannot be put together",
            fix="run samples of one route at a time (a forced route with a single row)",
        )
    return select_rows(join_rows(values, found), found, order, len(order))
