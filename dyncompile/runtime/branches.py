"""Branches that only some rows run: gather, run, scatter back in order.

    total = kept;  total[rows_k] += alpha * gain_k[rows_k] * body_k(taken[rows_k])      rows_k: gain_k above 0

Without anything kept, `total` starts at 0; where every row takes one branch it is put together from these.
Where rows are large they are not gathered: runs of neighbors are read, and added to, where they lie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from dyncompile.analysis.dims.call import Type
from dyncompile.errors import RouteError
from dyncompile.program import Decision
from dyncompile.runtime import ops
from dyncompile.runtime.blocks import rows_at_once
from dyncompile.runtime.compiled import GraphForward
from dyncompile.runtime.grouping import Grouping
from dyncompile.runtime.rows import rows_between, select_rows
from dyncompile.runtime.takers import Takers, find_takers, gains_of, table_of

FEW = 4
"""Rows in a block up to which runs of neighbors are run where they lie. Measured with blocks of ResNet-50 at
batch 8 on one x86-64 core: one row (3 MiB) at a time takes 0.75 of the time of all 8 rows for 6 of them, two
(1.5 MiB each) as well, where gathering takes 0.81; rows of which more have room are faster together."""


class Narrowable(Protocol):
    """What stands behind a graph's `policy` input and can stand for some of its rows."""

    def narrowed(self, at: Tensor) -> Any:
        """The same for the rows at positions `at` [n]."""
        ...

    def decide(self, name: str, features: Sequence[Tensor]) -> Decision:
        """What was decided for these rows."""
        ...


@dataclass(frozen=True, slots=True)
class Branch:
    """One branch, as a function of the rows that take it.

    Attributes:
        body: ``(policy, *taken)`` -> what is added.
        weights: the gain of a row is ``decision @ weights``.
        takes: which of the values that the join takes the body reads.
        borrowed: what the body gives may be the memory of something else.
        grouping: how rows part that keep different channels in it; None where it picks none.
        row_bytes: memory of the widest value of one row, where rows may run one after the other; else 0.
    """

    body: GraphForward
    weights: tuple[float, ...]
    takes: tuple[int, ...]
    borrowed: bool
    grouping: Grouping | None = None
    row_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Reached:
    """Who reaches a join: what stands for these rows, their decisions, the values that the join takes."""

    policy: Narrowable
    decision: Decision
    taken: Sequence[Any]

    @property
    def count(self) -> int:
        """How many rows they are."""
        return len(self.decision.rows)


@dataclass(frozen=True, slots=True)
class Part:
    """What a branch gave, times its gains.

    `rows` [n] are positions of the rows that took it; None: all.
    """

    output: Tensor
    rows: Tensor | None
    borrowed: bool


@dataclass(frozen=True, slots=True)
class Join:
    """The end of branches, as a function of the rows that reach it.

    Attributes:
        branches: what is added.
        alpha: factor of the branches in the sum.
        in_place: the source adds into the memory of the branch's output.
        rectified: a ReLU follows, which is part of this.
        owned: something writes into the result later, so it must not be the memory of anything else.
        positive: what is kept is the output of a ReLU, which another leaves as it is.
        dying: nothing reads what is kept afterwards: without gradients the sum takes its memory.
        axis: the axis of what is kept, or of the sum where nothing is, that has the batch as its outermost
            factor; None without one.
        takes: types of what the bodies read.
    """

    branches: tuple[Branch, ...]
    alpha: float
    in_place: bool
    rectified: bool
    owned: bool
    positive: bool
    dying: bool
    axis: int | None
    takes: tuple[Type, ...]

    def named(self, name: str) -> Callable[..., Tensor]:
        """A function that graphs can call."""

        def run(policy: Narrowable, decision: Decision, kept: Tensor | None, *taken: Any) -> Tensor:
            return self.run(policy, decision, kept, *taken)

        run.__name__ = run.__qualname__ = name
        return run

    def run(self, policy: Narrowable, decision: Decision, kept: Tensor | None, *taken: Any) -> Tensor:
        """What is kept plus the branches, each of which runs for the rows that need it."""
        here, table = Reached(policy, decision, taken), table_of(decision)
        todo: list[tuple[Branch, Takers]] = []
        for branch in self.branches if here.count else self.branches[:1]:
            who = find_takers(decision, table, branch.weights)
            if who.count or not here.count:
                todo += [(branch, one) for one in self._groups(branch, who, policy)]
        runs = _runs(*todo[0], taken) if len(todo) == 1 and self.axis is not None else []
        if kept is not None and runs:
            return self._added_in_place(kept, *todo[0], runs, here)
        parts = [self._part(branch, one, here) for branch, one in todo]
        if kept is None:
            return self._together(parts, here.count)
        if not parts:
            return self._kept(kept)
        if len(parts) == 1 and parts[0].rows is None:
            return self._rectified(self._sum(kept, parts[0]))
        return self._added(kept, parts, here.count)

    def _groups(self, branch: Branch, who: Takers, policy: Narrowable) -> list[Takers]:
        """The rows that take a branch, by the channels that they keep in it."""
        if branch.grouping is None or who.count < 2:
            return [who]
        steering = policy if who.rows is None else policy.narrowed(who.rows)
        found = branch.grouping.divide({name: steering.decide(name, ()) for name in branch.grouping.choices})
        if found is None:
            return [who]
        return [Takers(at if who.rows is None else who.rows[at], len(at), who.neutral) for at in found]

    def _part(self, branch: Branch, who: Takers, here: Reached) -> Part:
        """What a branch gives for the rows that take it, gathered."""
        values = [here.taken[i] for i in branch.takes]
        if who.rows is not None:
            types = [self.takes[i] for i in branch.takes]
            values = [select_rows(*one, who.rows, here.count) for one in zip(values, types, strict=True)]
        output = self._given(branch, who, here, values)
        rows = None if who.rows is None else who.rows.to(output.device)
        return Part(output, rows, rows is None and branch.borrowed and who.neutral)

    def _given(self, branch: Branch, who: Takers, here: Reached, values: Sequence[Any]) -> Tensor:
        """What the body gives for the `values` of rows that take a branch, times their gains."""
        (output,) = branch.body(here.policy if who.rows is None else here.policy.narrowed(who.rows), *values)
        if who.neutral:
            return output
        gains = gains_of(here.decision, branch.weights)
        return ops.times(output, gains if who.rows is None else gains[who.rows.to(gains.device)], self._axis)

    @property
    def _axis(self) -> int:
        return self.axis or 0

    # -- nothing is kept ----------------------------------------------------------------------

    def _together(self, parts: Sequence[Part], count: int) -> Tensor:
        """The sum of the parts, all `count` rows."""
        whole = [part.output for part in parts if part.rows is None]
        some = [(part.output, part.rows) for part in parts if part.rows is not None]
        if not parts:
            raise RouteError("no row gives any alternative a weight", fix="rows of such a choice sum to 1")
        if not some:
            total = reduce(torch.add, whole)
            return total.clone() if self.owned and len(whole) == 1 and parts[0].borrowed else total
        axis, dtype = self._axis, _widest(part.output for part in parts)
        pieces = [(_by_row(x.to(dtype), axis, len(rows)), rows) for x, rows in some]
        shape = list(pieces[0][0].shape)
        shape[axis] = count
        total = pieces[0][0].new_zeros(shape)
        for piece, rows in pieces:
            total.index_add_(axis, rows, piece)
        total = total if len(shape) == some[0][0].dim() else total.flatten(axis, axis + 1)
        return reduce(torch.add, whole, total)

    # -- something is kept --------------------------------------------------------------------

    def _kept(self, kept: Tensor) -> Tensor:
        """What is left where no row needs a branch."""
        if self.rectified and not self.positive:
            return kept.relu()
        return kept.clone() if self.owned else kept

    def _sum(self, kept: Tensor, part: Part) -> Tensor:
        if self.in_place and not part.borrowed:
            return part.output.add_(kept)
        return torch.add(kept, part.output, alpha=self.alpha)

    def _rectified(self, total: Tensor) -> Tensor:
        """`total` is new memory, and the gradient of a sum needs none of its values."""
        return total.relu_() if self.rectified else total

    def _added(self, kept: Tensor, parts: Sequence[Part], count: int) -> Tensor:
        """`kept` with parts added to some of its `count` rows, which lie outermost in the batch's axis."""
        axis = self._axis
        wide = _widest((kept, *(part.output for part in parts)))  # autocast leaves the sides different
        kept = kept.to(wide)
        by_row = _by_row(kept, axis, count)
        learns = torch.is_grad_enabled()
        total = by_row if learns else self._writable(by_row)
        for part in parts:
            rows = torch.arange(count, device=kept.device) if part.rows is None else part.rows.to(kept.device)
            some = self._fitted(part.output.to(wide), kept, len(rows), count)
            some = _by_row(some, axis, len(rows))
            if learns:
                total = total.index_add(axis, rows, some, alpha=self.alpha)
            else:
                total.index_add_(axis, rows, some, alpha=self.alpha)
        if self.rectified:
            total.relu_()  # gathering the rows that were added to takes several times as long
        return total.flatten(axis, axis + 1) if by_row is not kept else total

    def _added_in_place(
        self, kept: Tensor, branch: Branch, who: Takers, runs: Sequence[range], here: Reached
    ) -> Tensor:
        """`kept` with a branch added to runs of neighbors, to each as soon as it is there and still cached.

        Later runs may read the memory that earlier ones were added to, but no row of theirs.
        """
        total, each = kept, kept.shape[self._axis] // here.count
        reads = [(here.taken[i], self.takes[i]) for i in branch.takes]
        for number, run in enumerate(runs):
            values = [rows_between(*one, run.start, run.stop, here.count) for one in reads]
            some = Takers(torch.arange(run.start, run.stop), len(run), who.neutral)
            output = self._given(branch, some, here, values)
            if not number:
                total = self._writable(kept.to(_widest((kept, output))))
            place = total.narrow(self._axis, run.start * each, len(run) * each)
            place.add_(output, alpha=self.alpha)
            if self.rectified and self.positive:
                place.relu_()
        return total.relu_() if self.rectified and not self.positive else total

    def _writable(self, kept: Tensor) -> Tensor:
        """`kept` where its memory may be taken, else a copy."""
        return kept if self.dying and kept.is_contiguous() else kept.clone()

    def _fitted(self, output: Tensor, kept: Tensor, rows: int, count: int) -> Tensor:
        """What a branch gave for some rows, in the shape of so many rows of `kept`."""
        shape = list(kept.shape)
        shape[self._axis] = shape[self._axis] // count * rows
        return output.expand(shape)  # a branch may be broadcast against what it is added to


def _runs(branch: Branch, who: Takers, taken: Sequence[Any]) -> list[range]:
    """Runs of neighbors among the rows that take a branch; none where they had better be gathered."""
    if who.rows is None or branch.grouping is not None:  # every run would gather channels of weights anew
        return []
    most = rows_at_once(branch.row_bytes, taken)
    if not 0 < most <= FEW:
        return []
    runs: list[range] = []
    for row in cast(list[int], who.rows.tolist()):  # pyright: ignore[reportUnknownMemberType]
        if runs and runs[-1].stop == row and len(runs[-1]) < most:
            runs[-1] = range(runs[-1].start, row + 1)
        else:
            runs.append(range(row, row + 1))
    return runs


def _by_row(x: Tensor, axis: int, count: int) -> Tensor:
    """`x` with one position per row in `axis`, and what else lay there in the axis after it."""
    return x if x.shape[axis] == count else torch.unflatten(x, axis, (count, -1))


def _widest(tensors: Iterable[Tensor]) -> torch.dtype:
    return reduce(torch.promote_types, (x.dtype for x in tensors))
