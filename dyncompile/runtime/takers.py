"""Who takes a branch, read from a decision once, as plain numbers where it is small.

On a handful of rows a tensor operator takes longer than the whole arithmetic, and a network asks at every
branch. Gains that gradients flow through, and large decisions, stay tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from dyncompile.program import Decision

_SMALL = 512
"""Numbers of a decision up to which plain numbers are faster than tensors."""

Table = list[list[float]]
"""Rows of a decision as plain numbers."""


@dataclass(frozen=True, slots=True)
class Takers:
    """The rows with a gain that is not 0.

    Attributes:
        rows: their positions, int64 [n]; None where that is all of them, or there are none.
        count: how many they are.
        neutral: whether there are any, all their gains are 1, and no gradient asks for the product.
    """

    rows: Tensor | None
    count: int
    neutral: bool

    @property
    def all_neutral(self) -> bool:
        """Whether every row has gain 1."""
        return self.rows is None and self.neutral


def table_of(decision: Decision) -> Table | None:
    """The rows as plain numbers; None where a gradient goes through them, or they are many."""
    rows = decision.rows
    if rows.numel() > _SMALL or (rows.requires_grad and torch.is_grad_enabled()):
        return None
    return plain(rows)


def plain(rows: Tensor) -> Table:
    """Rows as plain numbers."""
    return cast(Table, rows.tolist())  # pyright: ignore[reportUnknownMemberType]


def find_takers(decision: Decision, table: Table | None, weights: tuple[float, ...]) -> Takers:
    """Who has a gain ``row @ weights`` that is not 0; `table` is `table_of(decision)`."""
    if table is None:
        return _in_tensors(gains_of(decision, weights))
    gains = [sum(a * b for a, b in zip(row, weights, strict=True)) for row in table]
    on = [at for at, gain in enumerate(gains) if gain != 0]
    neutral = bool(on) and all(gains[at] == 1 for at in on)
    if not on or len(on) == len(gains):
        return Takers(None, len(on), neutral)
    return Takers(torch.tensor(on, dtype=torch.int64), len(on), neutral)


def _in_tensors(gains: Tensor) -> Takers:
    on = gains.detach() != 0
    rows = on.nonzero().flatten()
    taken = gains if len(rows) == len(gains) else gains[rows]
    return Takers(None if taken is gains else rows, len(rows), bool(len(rows)) and is_neutral(taken))


def gains_of(decision: Decision, weights: tuple[float, ...]) -> Tensor:
    """``rows @ weights``: float [rows]."""
    return decision.rows @ decision.rows.new_tensor(weights)


def is_neutral(gains: Tensor) -> bool:
    """Whether a product with `gains` is what is multiplied, and no gradient asks for it."""
    learns = torch.is_grad_enabled() and gains.requires_grad
    return not learns and bool((gains == 1).all())
