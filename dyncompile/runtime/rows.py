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
from dyncompile.analysis.dims.call import TensorType, Type
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


def elements_per_row(found: Type) -> int:
    """Numbers per row of a typed value; 0 where it has no rows."""
    if isinstance(found, list):
        return sum(map(elements_per_row, found))
    if not isinstance(found, tuple) or batch_axis(found) is None:
        return 0
    return math.prod(factor_size(factor) for dim in found for factor in dim if factor != BATCH)


def select_rows(value: Any, found: Type, index: Tensor, rows: int) -> Any:
    """The given rows [n] of a value that holds `rows` of them; what has no batch axis stays as it is."""
    if isinstance(found, list):
        return [select_rows(v, f, index, rows) for v, f in zip(items(value), found, strict=True)]
    axis = batch_axis(found)
    if axis is None or not isinstance(value, Tensor):
        return value
    at = index.to(value.device)
    if value.shape[axis] == rows:
        return value.index_select(axis, at)
    by_row = torch.unflatten(value, axis, (rows, -1))
    return by_row.index_select(axis, at).flatten(axis, axis + 1)


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
    """Parts of a value one behind the other along its batch; what has no batch axis is the same in all."""
    if len(values) == 1:
        return values[0]
    if isinstance(found, list):
        parts = zip(*map(items, values), strict=True)
        return [join_rows(part, f) for part, f in zip(parts, found, strict=True)]
    axis = batch_axis(found)
    if axis is None or not isinstance(values[0], Tensor):
        return values[0]
    return torch.cat(list(values), axis)


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
    """One output of all groups: rows back in order along its batch axis."""
    if not isinstance(values[0], Tensor):
        if any(value != values[0] for value in values):
            raise InputError(
                "an output that is not a tensor depends on the route", fix="run one route at a time"
            )
        return values[0]
    dims = found if isinstance(found, tuple) else ()
    axis = next((i for i, dim in enumerate(dims) if BATCH in dim), None)
    if axis is None or dims[axis][0] != BATCH:
        raise InputError(
            "an output has no batch axis, so results of different routes cannot be put together",
            fix="run samples of one route at a time (a forced route with a single row)",
        )
    whole = torch.cat(values, axis)
    rows = order.to(whole.device)
    if dims[axis] == (BATCH,):
        return whole.index_select(axis, rows)
    by_row = torch.unflatten(whole, axis, (len(rows), -1))
    return by_row.index_select(axis, rows).flatten(axis, axis + 1)
