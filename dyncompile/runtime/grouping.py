"""Rows that keep different channels: together at the union, apart by pattern, or masked at full width.

    cost(group) = operators * call + rows * MACs(union) * mac + weights(union) * gather

MACs and weights are polynomials in the shares of the dims that the group's union keeps. A dim is narrowed
only where that saves more arithmetic than gathering its weights costs; masked, it keeps its positions and
gains of 0 remove them. Rows are divided in two around the two patterns that differ most, as long as the parts
cost less than the whole. All ways give the same values; only their time differs.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from dyncompile.analysis.macs import Polynomial
from dyncompile.program import Decision, Picked


@dataclass(frozen=True, slots=True)
class Costs:
    """What executing takes, in seconds. Only ratios matter.

    The defaults were measured on one x86-64 core, on layers of the sizes of ResNet-50's and ViT-B's.
    They are constants so that runs on different machines do the same; ``dyn.costs = measure_costs()``
    takes those of this one.

    Attributes:
        mac: one multiply-accumulate of a convolution or a linear layer.
        gather: one element of a weight that is gathered, over both axes.
        move: one element of an activation, taken out of the batch or added back into it.
        call: one operator.
    """

    mac: float = 0.024e-9
    gather: float = 0.35e-9
    move: float = 0.12e-9
    call: float = 4e-6


NARROW = Costs(gather=0.0, call=math.inf)
"""Rows stay together, and what none of them keeps is left out, whatever that costs."""

MASK = Costs(mac=0.0, gather=1.0, call=math.inf)
"""Rows stay together at full width."""

APART = Costs(mac=1.0, gather=0.0, move=0.0, call=0.0)
"""Rows of different patterns part wherever that saves anything."""

_Term = tuple[float, tuple[str, ...]]
"""Coefficient at full size, and the dims whose shares it is multiplied by."""


@dataclass(frozen=True)
class Work:
    """What nodes cost that read or make picked dims, per row.

    Attributes:
        macs: of nodes, in terms of shares of dims.
        weights: elements of the parameters that are narrowed.
    """

    macs: tuple[_Term, ...]
    weights: tuple[_Term, ...]

    @classmethod
    def of(
        cls, macs: Iterable[Polynomial], weights: Iterable[Polynomial], picked: Mapping[str, Picked]
    ) -> Work:
        """The part of polynomials that depends on picked dims."""
        return cls(_terms(macs, picked), _terms(weights, picked))

    def about(self, dim: str) -> Work:
        """The part that depends on one dim."""
        return Work(*(tuple(t for t in terms if dim in t[1]) for terms in (self.macs, self.weights)))

    def pays(self, costs: Costs) -> float:
        """From how many rows, times positions dropped per position kept, narrowing a dim saves more than its
        gathers cost, if these are the terms that depend on it.
        """
        gathered = sum(n for n, _ in self.weights) * costs.gather
        saved = sum(n for n, _ in self.macs) * costs.mac
        if gathered == 0:
            return 0.0
        return gathered / saved if saved else math.inf

    def cost(self, costs: Costs, rows: int, shares: Mapping[str, float]) -> float:
        """Seconds that rows with these shares take together, without what calls cost."""
        macs, weights = (
            sum(n * math.prod(shares[dim] for dim in dims) for n, dims in terms)
            for terms in (self.macs, self.weights)
        )
        return rows * macs * costs.mac + weights * costs.gather


def _terms(polynomials: Iterable[Polynomial], picked: Mapping[str, Picked]) -> tuple[_Term, ...]:
    found: Counter[tuple[str, ...]] = Counter()
    for polynomial in polynomials:
        for monomial, n in polynomial.items():
            dims = tuple(one.name for one in monomial if one.name in picked)
            if dims:
                found[dims] += n * math.prod(one.size for one in monomial)
    return tuple((float(n), dims) for dims, n in found.items())


# -- apart ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grouping:
    """How the rows of one branch are divided.

    Attributes:
        work: of the branch's body.
        choices: choice -> the dims that it picks inside the body.
        calls: operators in the body.
        moved: elements of a row that are taken from the batch and added back.
        costs: what these take.
    """

    work: Work
    choices: Mapping[str, tuple[str, ...]]
    calls: int
    moved: int
    costs: Costs

    def divide(self, decisions: Mapping[str, Decision]) -> list[Tensor] | None:
        """Positions [n] of the rows of each group, int64; None where all rows stay together.

        Raises:
            KeyError: a choice has no decision.
        """
        rows = [decisions[choice].rows.detach() > 0 for choice in self.choices]
        if not rows or len(rows[0]) < 2 or math.isinf(self.costs.call):
            return None
        widths = [one.shape[1] for one in rows]
        on = torch.cat(rows, 1).float().cpu()
        whole = torch.arange(len(on))
        groups = self._divided(on, widths, whole, self._price(on, widths))
        return groups if len(groups) > 1 else None

    def _divided(self, on: Tensor, widths: Sequence[int], rows: Tensor, price: float) -> list[Tensor]:
        """`rows` in as many parts as pays."""
        own = on[rows]
        parts = _in_two(own)
        if parts is None:
            return [rows]
        moving = len(rows) * self.moved * self.costs.move
        prices = [self._price(own[part], widths) for part in parts]
        if sum(prices) + moving >= price:
            return [rows]
        return [
            group
            for part, one in zip(parts, prices, strict=True)
            for group in self._divided(on, widths, rows[part], one)
        ]

    def _price(self, on: Tensor, widths: Sequence[int]) -> float:
        """Seconds for rows with these columns [n, all columns] on, at the union."""
        union, shares, start = on.amax(0), dict[str, float](), 0
        for dims, width in zip(self.choices.values(), widths, strict=True):
            share = float(union[start : start + width].mean())
            shares.update(dict.fromkeys(dims, max(share, 1 / width)))
            start += width
        return self.calls * self.costs.call + self.work.cost(self.costs, len(on), shares)


def _in_two(on: Tensor) -> tuple[Tensor, Tensor] | None:
    """Positions of the rows nearer to either of two patterns far apart; None where all are equal.

    The first is the one farthest from the first row, the second the one farthest from that.
    """
    first = int((on != on[0]).sum(1).argmax())
    distance = (on != on[first]).sum(1)
    second = int(distance.argmax())
    if not int(distance[second]):
        return None
    near = distance <= (on != on[second]).sum(1)
    return near.nonzero().flatten(), (~near).nonzero().flatten()


@dataclass(frozen=True)
class Channels:
    """What the picked dims of a graph are worth, by node.

    Attributes:
        picked: dims of which a choice keeps any positions.
        macs, weights: polynomials by the name of the node that computes, or reads a parameter.
        costs: what executing takes.
    """

    picked: Mapping[str, Picked]
    macs: Mapping[str, Polynomial]
    weights: Mapping[str, Polynomial]
    costs: Costs

    def pays(self, dim: str) -> float:
        """See `Work.pays`, for one dim of the graph."""
        whole = Work.of(self.macs.values(), self.weights.values(), self.picked)
        return whole.about(dim).pays(self.costs)

    def grouping(self, nodes: Collection[str], calls: int, moved: int) -> Grouping | None:
        """How to divide rows of a body that these nodes are in; None where it picks nothing."""
        macs, weights = ([p for n, p in table.items() if n in nodes] for table in (self.macs, self.weights))
        work = Work.of(macs, weights, self.picked)
        choices: dict[str, tuple[str, ...]] = {}
        for dim in dict.fromkeys(dim for _, dims in (*work.macs, *work.weights) for dim in dims):
            choice = self.picked[dim].choice
            choices[choice] = (*choices.get(choice, ()), dim)
        return Grouping(work, choices, calls, moved, self.costs) if choices else None


# -- measuring -----------------------------------------------------------------------------------------


@cache
def measure_costs(device: str = "cpu", repeats: int = 15) -> Costs:
    """Costs of a device, from a convolution and what would narrow it: least times of so many runs.

    It takes a fraction of a second, once per process.
    """
    x = torch.ones(8, 256, 14, 14, device=device)
    weight = torch.ones(256, 256, 3, 3, device=device)
    half, some = (torch.arange(0, n, 2, device=device) for n in (256, 8))
    small = x[:1, :1, :1]

    def least(run: Callable[[], Tensor]) -> float:
        return min(_timed(run, x.device) for _ in range(repeats))

    with torch.no_grad():
        rows = least(lambda: weight.index_select(0, half))
        columns = least(lambda: weight.index_select(1, half))
        taken = least(lambda: x.index_select(0, some))
        given = least(lambda: x.index_add_(0, some, x[::2]))
        return Costs(
            mac=least(lambda: torch.conv2d(x, weight, padding=1)) / (len(x) * 196 * weight.numel()),
            gather=(rows + columns) / (weight.numel() / 2),
            move=(taken + given) / x.numel(),
            call=least(lambda: small + 1),
        )


def _timed(run: Callable[[], Tensor], device: torch.device) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    found = run()
    if device.type != "cpu":
        found.flatten()[0].item()  # waits for the device
    return time.perf_counter() - began
