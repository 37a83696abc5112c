"""Fewer and larger groups of rows: small ones are moved up, to a larger width or into a branch that is kept.

Grouped execution starts every layer once per group, and a group of few rows uses the machine badly. Moving
rows up costs MACs and changes what they get, so it is off unless it is asked for. How rows of one decision
are put together is solved exactly, by dynamic programming over the columns that have rows: these are cut into
at most `limit` runs, each of which goes at its largest column, at the least total cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from dyncompile.policies import Policy
from dyncompile.program import SWITCHES, Choice, Domain, Program

Cost = Callable[[Choice, int, int], float]
"""``cost(choice, column, rows)``: what it costs to run so many rows together at one column, in any unit.

Columns of a choice that switches one branch are 0 (skipped) and 1 (kept). A unit of time, with what a group
costs however few rows it has, merges where one launch is cheaper than two; proportional to rows, nothing
merges unless a limit asks for it.
"""


def upward(counts: Sequence[int], price: Callable[[int, int], float], limit: int | None) -> list[int]:
    """For every column the one at which its rows run: itself or a later one.

    Args:
        counts: rows per column, columns in ascending order of size.
        price: ``price(column, rows)``.
        limit: groups that may be left; None for any number.
    """
    present = [column for column, count in enumerate(counts) if count]
    bound = len(present) if limit is None else min(limit, len(present))
    # best[k][i]: (cost, where the last run starts) of the first i columns in k runs
    best: list[dict[int, tuple[float, int]]] = [{0: (0.0, 0)}]
    for _ in range(bound):
        best.append(_one_more(best[-1], present, counts, price))
    target, end = list(range(len(counts))), len(present)
    fits = [k for k in range(1, bound + 1) if end in best[k]]
    runs = min(fits, key=lambda k: (best[k][end][0], -k), default=0)
    while runs:
        start = best[runs][end][1]
        for column in present[start:end]:
            target[column] = present[end - 1]
        end, runs = start, runs - 1
    return target


def _one_more(
    before: Mapping[int, tuple[float, int]],
    present: Sequence[int],
    counts: Sequence[int],
    price: Callable[[int, int], float],
) -> dict[int, tuple[float, int]]:
    """By number of columns, the cheapest way to put them into one run more than in `before`."""
    found: dict[int, tuple[float, int]] = {}
    for end in range(1, len(present) + 1):
        top, ways = present[end - 1], list[tuple[float, int]]()
        for start in (one for one in before if one < end):
            rows = sum(counts[column] for column in present[start:end])
            ways.append((before[start][0] + price(top, rows), start))
        if ways:
            found[end] = min(ways, key=lambda way: (way[0], -way[1]))
    return found


@dataclass(frozen=True, eq=False)
class Merging:
    """Who decides, with small groups of its decisions moved up; itself a policy.

    Attributes:
        policy: who decides.
        movable: the choices whose columns are ordered by size.
        limit: groups per decision; None for any number.
        cost: what groups cost.
    """

    reads_gates: ClassVar[bool] = False

    policy: Policy
    movable: frozenset[str]
    limit: int | None
    cost: Cost

    def decide(self, choice: Choice, rows: int, logits: Tensor | None) -> Tensor:
        """The policy's rows [rows, width]; some of them those of a larger column."""
        decided = self.policy.decide(choice, rows, logits)
        if choice.name not in self.movable or rows < 2:
            return decided
        if choice.domain is Domain.ONE_HOT:
            return self._by_column(choice, decided)
        return self._switched(choice, decided)

    def _by_column(self, choice: Choice, decided: Tensor) -> Tensor:
        columns = decided.argmax(1)
        counts: list[int] = torch.bincount(columns, minlength=choice.width).tolist()  # pyright: ignore
        target = upward(counts, lambda column, rows: self.cost(choice, column, rows), self.limit)
        if target == list(range(choice.width)):
            return decided
        moved = torch.tensor(target, device=columns.device)[columns]
        return torch.nn.functional.one_hot(moved, choice.width).to(decided)

    def _switched(self, choice: Choice, decided: Tensor) -> Tensor:
        """One column that is on or off: rows that skip it take it at full gain, or all stay as they are."""
        on = decided[:, 0] > 0
        kept = int(on.sum())
        target = upward(
            [len(on) - kept, kept], lambda column, rows: self.cost(choice, column, rows), self.limit
        )
        if not kept or target[0] == 0:
            return decided
        full = decided.new_tensor([choice.full])
        return torch.where(on[:, None], decided, full)


class _MergingGates(Merging):
    """The same for a policy that reads the logits of decision nets."""

    reads_gates: ClassVar[bool] = True


def merged(policy: Policy, movable: frozenset[str], limit: int | None, cost: Cost) -> Merging:
    """A policy with its small groups moved up, see `Merging`."""
    kind = _MergingGates if policy.reads_gates else Merging
    return kind(policy, movable, limit, cost)


def movable(program: Program) -> frozenset[str]:
    """Choices whose later columns run at sizes at least as large, and those that switch one branch."""
    found = {one.name for one in program.choices.values() if one.width == 1 and one.domain in SWITCHES}
    sizes: dict[str, list[Sequence[int]]] = {}
    for one in program.sized.values():
        sizes.setdefault(one.choice, []).append(one.sizes)
    if program.variants is not None:
        areas = [height * width for height, width in program.variants.sizes]
        sizes.setdefault(program.variants.choice, []).append(areas)
    for choice, tables in sizes.items():
        if all(list(table) == sorted(table) for table in tables):
            found.add(choice)
    return frozenset(found)


def by_macs(macs: Callable[[Mapping[str, Tensor]], Tensor], choices: Mapping[str, Choice]) -> Cost:
    """Cost in MACs, every other choice at full capacity."""

    @cache
    def of(name: str, column: int) -> float:
        choice = choices[name]
        one_hot = choice.row(column) if choice.width > 1 else (choice.full if column else choice.smallest)
        rows = {other.name: torch.tensor([other.full]) for other in choices.values()}
        return float(macs({**rows, name: torch.tensor([one_hot])})[0])

    def cost(choice: Choice, column: int, rows: int) -> float:
        return rows * of(choice.name, column)

    return cost
