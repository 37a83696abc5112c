"""Branches that only some rows run: gather, run, scatter back in order.

exit = kept;  exit[rows] += alpha * gain[rows] * body(taken[rows])        rows: those of gain above 0
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dyncompile.analysis.dims.call import Type
from dyncompile.program import Decision
from dyncompile.runtime import ops
from dyncompile.runtime.compiled import GraphForward
from dyncompile.runtime.rows import batch_axis, select_rows


class Narrowable(Protocol):
    """What stands behind a graph's `policy` input and can stand for some of its rows."""

    def narrowed(self, at: Tensor) -> Any:
        """The same for the rows at positions `at` [n]."""
        ...


@dataclass(frozen=True, slots=True)
class Branch:
    """The end of a branch, as a function of the rows that reach it.

    Attributes:
        body: ``(policy, *taken)`` -> what is added.
        weights: the gain of a row is ``decision @ weights``.
        alpha: factor in the sum.
        in_place: the source adds into the memory of the branch's output.
        rectified: a ReLU follows, which is part of this.
        owned: something writes into the result later, so it must not be the memory of `kept`.
        positive: `kept` is the output of a ReLU, which another leaves as it is.
        kept: type of the other operand.
        takes: types of what the body reads.
    """

    body: GraphForward
    weights: tuple[float, ...]
    alpha: float
    in_place: bool
    rectified: bool
    owned: bool
    positive: bool
    kept: Type
    takes: tuple[Type, ...]

    def named(self, name: str) -> Callable[..., Tensor]:
        """A function that graphs can call."""

        def run(policy: Narrowable, decision: Decision, kept: Tensor, *taken: Any) -> Tensor:
            return self.run(policy, decision, kept, *taken)

        run.__name__ = run.__qualname__ = name
        return run

    def run(self, policy: Narrowable, decision: Decision, kept: Tensor, *taken: Any) -> Tensor:
        """``kept`` plus the branch, which runs for the rows that need it."""
        gains = ops.weighted(decision, self.weights)
        rows = (gains.detach() != 0).nonzero().flatten()
        axis = batch_axis(self.kept) or 0
        if not len(rows) and len(gains):
            return self._kept(kept)
        if len(rows) == len(gains):
            (output,) = self.body(policy, *taken)
            return self._rectified(self._sum(kept, ops.times(output, gains, axis)))
        some = [
            select_rows(value, found, rows, len(gains))
            for value, found in zip(taken, self.takes, strict=True)
        ]
        (output,) = self.body(policy.narrowed(rows), *some)
        output = ops.times(output, gains[rows], axis)
        return self._rectified(_added(kept, axis, rows.to(kept.device), output, len(gains), self.alpha))

    def _kept(self, kept: Tensor) -> Tensor:
        """What is left where no row needs the branch."""
        if self.rectified and not self.positive:
            return kept.relu()
        return kept.clone() if self.owned else kept

    def _sum(self, kept: Tensor, output: Tensor) -> Tensor:
        if self.in_place:
            return output.add_(kept)
        return torch.add(kept, output, alpha=self.alpha)

    def _rectified(self, total: Tensor) -> Tensor:
        """`total` is new memory; with gradients in-place ReLU is as good as any, since a sum needs no values."""
        return total.relu_() if self.rectified else total


def _added(kept: Tensor, axis: int, rows: Tensor, output: Tensor, count: int, alpha: float) -> Tensor:
    """A copy of `kept` with `output` added to some of its `count` rows, which lie outermost in `axis`."""
    if kept.shape[axis] == count:
        return kept.index_add(axis, rows, output, alpha=alpha)
    by_row = torch.unflatten(kept, axis, (count, -1))
    some = torch.unflatten(output, axis, (len(rows), -1))
    return by_row.index_add(axis, rows, some, alpha=alpha).flatten(axis, axis + 1)
