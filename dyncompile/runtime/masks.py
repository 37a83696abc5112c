"""Operators of masked (dense) execution: every row runs at full size, what its decision drops is zeroed.

Decisions enter as numbers, so that gradients of the loss reach them. Hard decisions give what row-grouped
execution gives, apart from the order of sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from dyncompile.analysis.dims.algebra import kept, size
from dyncompile.program import Decision
from dyncompile.runtime.ops import Pattern, decode

Table = tuple[Pattern, tuple[tuple[int, ...], ...]]
"""A dim whose operands a choice sizes: its pattern, and per operand the size at each column."""


def mask(
    like: Tensor,
    axis: int,
    batch: int,
    decisions: Sequence[Decision],
    tables: Sequence[Table],
    outer: int = 1,
) -> Tensor:
    """1 where a row keeps a position of `axis` and 0 elsewhere, broadcastable against `like`.

    `batch` is the axis that holds the rows, behind `outer` other positions. Relaxed decisions give values in
    between.
    """
    kept_rows: Tensor | None = None
    for decision, table in zip(decisions, tables, strict=True):
        rows = decision.rows.to(like.device)
        positions = rows @ _indicator(*table, like.device).to(rows.dtype)
        kept_rows = positions if kept_rows is None else kept_rows * positions
    assert kept_rows is not None
    per_row = like.shape[batch] // max(len(kept_rows) * outer, 1)
    spread = kept_rows.repeat_interleave(per_row, 0) if per_row > 1 else kept_rows
    spread = spread.repeat(outer, 1) if outer > 1 else spread
    shape = [1] * like.dim()
    shape[batch], shape[axis] = spread.shape
    return (spread if batch < axis else spread.T).reshape(shape)


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """`x` with dropped positions at zero, in the dtype of `x`."""
    return x * mask.to(x.dtype)


def masked_layer_norm(
    x: Tensor, mask: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Layer norm over the kept positions of the last axis; what it gives elsewhere is not used."""
    share = mask.to(x.dtype)
    count = share.sum(-1, keepdim=True)
    mean = (x * share).sum(-1, keepdim=True) / count
    centered = x - mean
    variance = (centered.square() * share).sum(-1, keepdim=True) / count
    out = centered * torch.rsqrt(variance + eps)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def grouped_batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    decision: Decision,
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
    table: Table,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """Batch norm [B, C, ...] with private statistics per column: rows of a column see its statistics.

    In training each column's statistics are updated from its own rows. Channels that a column drops are
    normalized by the full column's statistics: they matter to gradients of the decision only, which itself
    gets none through the statistics.
    """
    columns = decision.rows.argmax(1)
    per_row = x.shape[0] // max(len(columns), 1)
    out = torch.empty_like(x)
    whole = max(range(len(means)), key=lambda column: means[column].numel())
    for column in sorted({int(column) for column in columns}):
        rows = (columns == column).repeat_interleave(per_row).nonzero().flatten().to(x.device)
        index = _kept(*table, column).to(x.device)
        mean, variance = (_padded(part[column], part[whole], index) for part in (means, variances))
        part = x.index_select(0, rows)
        learns = training and part.numel() > part.shape[1]
        part = F.batch_norm(part, mean, variance, weight, bias, learns, momentum, eps)
        out = out.index_copy(0, rows, part.to(out.dtype))
        if learns:
            _store(means[column], mean, index)
            _store(variances[column], variance, index)
    return out


def _padded(own: Tensor, whole: Tensor, index: Tensor) -> Tensor:
    """A full-size copy of a column's statistics."""
    return whole.detach().clone().index_copy_(0, index, own.detach())


def _store(own: Tensor, updated: Tensor, index: Tensor) -> None:
    with torch.no_grad():
        own.copy_(updated.index_select(0, index))


@lru_cache(maxsize=4096)
def _kept(pattern: Pattern, sizes: tuple[tuple[int, ...], ...], column: int) -> Tensor:
    with torch.inference_mode(False):
        return kept(decode(pattern), {str(i): widths[column] for i, widths in enumerate(sizes)})


@lru_cache(maxsize=4096)
def _indicator(pattern: Pattern, sizes: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """[columns, positions]: 1 where a column keeps a position."""
    with torch.inference_mode(False):
        out = torch.zeros(len(sizes[0]), size(decode(pattern)))
        for column in range(len(out)):
            out[column, _kept(pattern, sizes, column)] = 1
        return out.to(device)
