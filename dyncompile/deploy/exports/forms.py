"""Decisions at batch 1, in operators that exporters know: plain functions, all state in their arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dyncompile.policies import Policy
from dyncompile.program import Choice


def deciding(policy: Policy, choice: Choice) -> Callable[[Tensor], Tensor]:
    """``logits [1, width] -> decision [1, width]``, as a function that graphs can call."""

    def decide(logits: Tensor) -> Tensor:
        return policy.decide(choice, 1, logits)

    return decide


def row(values: tuple[float, ...]) -> Tensor:
    """A row of constants, float32 [1, width].

    Constants are made by operators: inside a condition there is nowhere to keep a tensor.
    """
    if len(set(values)) == 1:
        return torch.full((1, len(values)), values[0])
    positions = torch.arange(len(values)).unsqueeze(0)
    parts = [(positions == i).float() * value for i, value in enumerate(values) if value]
    return sum(parts[1:], parts[0])


def weighed(rows: Tensor, weights: tuple[float, ...]) -> Tensor:
    """``rows [1, width] @ weights``, a number."""
    parts = [rows[0, i] if w == 1 else rows[0, i] * w for i, w in enumerate(weights) if w]
    return sum(parts[1:], parts[0]) if parts else rows.new_zeros(())


def is_on(gain: Tensor) -> Tensor:
    """Whether a gain is not 0: bool []."""
    return gain != 0


def picks(rows: Tensor, column: int) -> Tensor:
    """Whether a one-hot row [1, width] picks a column: bool []."""
    return rows[0, column] > 0


def stops(rows: Tensor) -> Tensor:
    """Whether the decision [1, 1] of an exit says stop: bool []."""
    return rows[0, 0] > 0


def times(x: Tensor, gain: Tensor) -> Tensor:
    """`x` times a number."""
    return x * gain.to(x.dtype)


def added(kept: Tensor, part: Tensor, alpha: float) -> Tensor:
    """``kept + alpha * part``."""
    return torch.add(kept, part, alpha=alpha)


def gains_along(gains: Tensor, columns: Tensor | None) -> Tensor:
    """A gain per position, [1, n]: position i has that of column ``columns[i]``; one past the last has 1."""
    if columns is None:
        return gains
    return torch.cat([gains, gains.new_ones(1, 1)], 1).index_select(1, columns)


def scaled(x: Tensor, gains: Tensor, axis: int) -> Tensor:
    """`x` with the positions of an axis times their gains [1, n]."""
    shape = [1] * x.dim()
    shape[axis] = -1
    return x * gains.to(x.dtype).reshape(shape)


def kernel(
    weight: Tensor, bases: Tensor, rows: Tensor, start: int, step: float, whole: bool = False
) -> Tensor:
    """``weight + sum_n a_n bases[n]`` for the coefficients a in a decision [1, width] from `start` on.

    A `step` above 0 rounds them to its multiples. Bases that are `whole` hold the weight already.
    """
    own = rows[:, start : start + bases.shape[0]].to(weight.dtype)
    own = (own / step).round() * step if step else own
    own_weight = weight * (1 - own.sum()) if whole else weight
    return own_weight + torch.mm(own, bases.flatten(1)).view(weight.shape)


def padded(x: Tensor, sizes: Sequence[int | None], places: Sequence[Tensor | None]) -> Tensor:
    """`x` at full size: axis i has ``sizes[i]`` positions, zeros but at ``places[i]`` (the leading ones)."""
    for axis, (wanted, at) in enumerate(zip(sizes, places, strict=True)):
        if wanted is None:
            continue
        if at is None:
            widths = [0, 0] * (x.dim() - 1 - axis) + [0, wanted - x.shape[axis]]
            x = torch.nn.functional.pad(x, widths)
        else:
            shape = list(x.shape)
            shape[axis] = wanted
            x = x.new_zeros(shape).index_copy(axis, at, x)
    return x


def narrowed(x: Tensor, sizes: Sequence[int | None], places: Sequence[Tensor | None]) -> Tensor:
    """What `padded` filled: ``sizes[i]`` leading positions of axis i, or those at ``places[i]``."""
    for axis, (wanted, at) in enumerate(zip(sizes, places, strict=True)):
        if at is not None:
            x = x.index_select(axis, at)
        elif wanted is not None:
            x = x.narrow(axis, 0, wanted)
    return x


VIEWS = (narrowed, gains_along)
"""Functions that may return the memory of their first argument."""
