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
        dying: nothing reads `kept` afterwards: without gradients the sum takes its memory.
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
    dying: bool
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
        return self._added(kept, axis, rows.to(kept.device), output, len(gains))

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
        """`total` is new memory, and the gradient of a sum needs none of its values."""
        return total.relu_() if self.rectified else total

    def _added(self, kept: Tensor, axis: int, rows: Tensor, output: Tensor, count: int) -> Tensor:
        """`kept` with `output` added to some of its `count` rows, which lie outermost in `axis`."""
        wide = torch.promote_types(kept.dtype, output.dtype)  # autocast leaves the two sides different
        kept, output = kept.to(wide), output.to(wide)
        by_row = kept if kept.shape[axis] == count else torch.unflatten(kept, axis, (count, -1))
        shape = list(kept.shape)
        shape[axis] = shape[axis] // count * len(rows)
        some = output.expand(shape)  # a branch may be broadcast against what it is added to
        if by_row is not kept:
            some = torch.unflatten(some, axis, (len(rows), -1))
        if torch.is_grad_enabled():
            total = self._rectified(by_row.index_add(axis, rows, some, alpha=self.alpha))
        else:
            total = by_row if self.dying and by_row.is_contiguous() else by_row.clone()
            total.index_add_(axis, rows, some, alpha=self.alpha)
            if self.rectified and self.positive:  # the other rows are as a ReLU left them
                total.index_copy_(axis, rows, total.index_select(axis, rows).relu_())
            elif self.rectified:
                total.relu_()
        return total if kept.shape[axis] == count else total.flatten(axis, axis + 1)
