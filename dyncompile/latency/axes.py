"""Where the sizes of a choice stand between those that were timed.

    w = axis.weights(on)          on [B, columns] -> w [B, anchors], rows sum to 1

A time at sizes between two anchors is interpolated linearly; at an anchor it is what was measured. Both forms
are linear in the row almost everywhere, so that times have gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dyncompile.program import Choice, Picked, Program, Sized

MOST = 4
"""Anchors per choice: neighboring choices are timed together, so that these numbers multiply."""


class Axis(Protocol):
    """Sizes that one choice decides."""

    @property
    def rows(self) -> tuple[tuple[float, ...], ...]:
        """The rows that are timed, anchor by anchor."""
        ...

    @property
    def full(self) -> int:
        """Which anchor is the full row."""
        ...

    def weights(self, on: Tensor) -> Tensor:
        """Shares [B, anchors] of the anchors, given which columns are on: float64 [B, columns]."""
        ...


@dataclass(frozen=True)
class Columns:
    """A choice that picks one of several sizes: ``on @ mixing`` with mixing [columns, anchors]."""

    rows: tuple[tuple[float, ...], ...]
    full: int
    mixing: Tensor

    @classmethod
    def of(cls, choice: Choice, sized: Sequence[Sized]) -> Columns:
        """Anchors at the ends, at the full column and evenly between; all columns where they are few."""
        full = choice.full.index(max(choice.full))
        at = _relative_sizes(choice, sized)
        order: list[int] = at.argsort(stable=True).tolist()  # pyright: ignore
        last = len(order) - 1
        some = {order[round(i * last / (MOST - 1))] for i in range(MOST)}
        anchors = sorted({*some, full}, key=order.index) if len(order) > MOST else list(range(len(order)))
        mixing = torch.eye(choice.width).double()
        if len(anchors) < choice.width:
            mixing = hats(at, at[anchors])
            mixing[anchors] = torch.eye(len(anchors)).double()  # equal sizes, other columns
        return cls(tuple(map(choice.row, anchors)), anchors.index(full), mixing)

    def weights(self, on: Tensor) -> Tensor:
        """See `Axis`."""
        return on @ self.mixing.to(on.device)


def _relative_sizes(choice: Choice, sized: Sequence[Sized]) -> Tensor:
    """Mean size of each column, relative to the largest: float64 [columns]."""
    shares = [torch.tensor(one.sizes).double() / max(one.sizes) for one in sized]
    return torch.stack(shares).mean(0) if shares else torch.arange(choice.width).double()


@dataclass(frozen=True)
class Shares:
    """A choice that keeps positions one by one: what counts is the share of its columns that are on."""

    rows: tuple[tuple[float, ...], ...]
    full: int
    shares: Tensor

    @classmethod
    def of(cls, choice: Choice) -> Shares:
        """Anchors at evenly spaced shares, and at the least that runs: a single column."""
        counts = sorted({max(1, round(choice.width * i / MOST)) for i in range(MOST + 1)})
        rows = tuple(spread_row(choice.width, count) for count in counts)
        shares = torch.tensor(counts).double() / choice.width
        return cls(rows, len(counts) - 1, shares)

    def weights(self, on: Tensor) -> Tensor:
        """See `Axis`."""
        return hats(on.mean(1), self.shares.to(on.device))


def spread_row(width: int, count: int) -> tuple[float, ...]:
    """A row of `width` with `count` columns on, evenly apart."""
    on = {i * width // count for i in range(count)}
    return tuple(float(column in on) for column in range(width))


def hats(at: Tensor, anchors: Tensor) -> Tensor:
    """Weights [n, anchors] of linear interpolation at `at` [n] between ascending anchors; ends go on flat."""
    if len(anchors) == 1:
        return torch.ones_like(at)[:, None] + 0 * at[:, None]
    at = at.clamp(float(anchors[0]), float(anchors[-1]))
    above = torch.searchsorted(anchors, at.detach().contiguous()).clamp(1, len(anchors) - 1)
    low, high = anchors[above - 1], anchors[above]
    part = ((at - low) / (high - low).clamp(min=1e-12))[:, None]
    one_hot = torch.eye(len(anchors), dtype=at.dtype, device=at.device)
    return one_hot[above - 1] * (1 - part) + one_hot[above] * part


def axes_of(program: Program) -> dict[str, Axis]:
    """The axis of every choice that sizes something."""
    found: dict[str, Axis] = {}
    with torch.inference_mode(False):  # gradients go through what is kept here
        for name in dict.fromkeys(one.choice for one in program.sized.values()):
            mine = [one for one in program.sized.values() if one.choice == name]
            found[name] = Columns.of(program.choices[name], mine)
        for name in dict.fromkeys(one.choice for one in program.picked.values()):
            found[name] = Shares.of(program.choices[name])
    return found


def sizing_choices(names: set[str], program: Program) -> set[str]:
    """Choices that decide the sizes of elastic dims."""
    both: list[Mapping[str, Sized | Picked]] = [program.sized, program.picked]
    return {deciders[name].choice for deciders in both for name in names if name in deciders}
