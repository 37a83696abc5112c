"""How routes are used: columns per choice, distinct routes, entropies, and whether routing has collapsed.

Routes are counted, not kept: memory grows with the number of distinct routes alone, by one bit per column.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn import functional as F

from dyncompile.errors import DyncompileWarning
from dyncompile.program import Choice, Domain, Route

Columns = npt.NDArray[np.bool_]
"""Which columns of a choice samples have on: [B, width]."""

COUNTABLE = 2**63 - 1
"""Numbers of routes stop here; the bits of channels alone would have thousands of digits."""

_SAME = 0.5
"""Share of on/off columns that may be the same for all samples before that is said."""

_UNCOUNTED = (Domain.MIXTURE, Domain.EXIT)

_ENOUGH = 10
"""Samples (per column, where columns are judged) below which nothing is said about collapse."""


class CollapseWarning(DyncompileWarning):
    """Decision nets that no longer decide."""


@dataclass(frozen=True)
class ChoiceUse:
    """How one choice was used.

    Attributes:
        labels: names of the columns.
        columns: share of the samples that had each column on.
        entropy: of what samples do at this choice, in nats.
        possible: number of different rows that the choice offers (bits: 2 to the width), at most `COUNTABLE`.
    """

    labels: tuple[str, ...]
    columns: tuple[float, ...]
    entropy: float
    possible: int

    @property
    def exclusive(self) -> bool:
        """Whether a row has one column on, instead of any of them."""
        return self.possible == len(self.columns)


@dataclass(frozen=True)
class Summary:
    """How a set of routes is used.

    Attributes:
        samples: number of rows counted.
        choices: use of every choice by name.
        unique: number of distinct routes.
        possible: number of routes that there could be, at most `COUNTABLE`.
        entropy: of the joint route, in nats.
        top: share of the samples on the most used route.
    """

    samples: int
    choices: Mapping[str, ChoiceUse]
    unique: int
    possible: int
    entropy: float
    top: float

    def warnings(self) -> tuple[str, ...]:
        """What looks collapsed and what to change; empty for healthy routing or too few samples to tell."""
        if self.samples < _ENOUGH:
            return ()
        if self.unique == 1 and self.possible > 1:
            return (
                f"all {self.samples} samples take one of {_number(self.possible)} routes: the gates have "
                "collapsed. Lower the gates' learning rate, raise the weight of the sparsification term, add "
                "noise (Learned(noise=True); gains take none), or see that the target lies between the "
                "cheapest and the full route",
            )
        unused = (self._unused(name, use) for name, use in self.choices.items() if use.exclusive)
        return tuple(text for text in (*unused, *self._same()) if text)

    def _unused(self, name: str, use: ChoiceUse) -> str:
        never = [label for label, share in zip(use.labels, use.columns, strict=True) if share == 0]
        if not never or self.samples < _ENOUGH * len(use.labels):
            return ""
        return (
            f"choice {name!r} never takes {', '.join(never)} (of {', '.join(use.labels)}) in {self.samples} "
            "samples: leave such columns out, or raise the noise or lower the temperature of the gate phase"
        )

    def _same(self) -> Iterator[str]:
        """A line per kind of on/off choices (up to the first dot of their names), however many there are."""
        kinds: dict[str, list[float]] = {}
        for name, use in self.choices.items():
            if not use.exclusive:
                kinds.setdefault(name.partition(".")[0], []).extend(use.columns)
        for kind, shares in kinds.items():
            on, off = shares.count(1.0), shares.count(0.0)
            if on + off > _SAME * len(shares):
                yield (
                    f"{on + off} of {len(shares)} {kind!r} gates are the same for all {self.samples} samples "
                    f"({on} always on, {off} always off). What is always off may be left out of the network; "
                    "for gates that tell samples apart, train them longer, or add a term that asks for it "
                    "(BatchShaping)"
                )


def _number(routes: int) -> str:
    return str(routes) if routes < 10**6 else "over a million"


@dataclass
class Tally:
    """Counts routes as they come: ``tally.add(route)`` per batch, then ``tally.summary()``."""

    choices: Mapping[str, Choice]
    _routes: Counter[bytes] = field(default_factory=Counter[bytes])

    def add(self, route: Route) -> None:
        """Count the rows of a route that names every choice: [B, width] each."""
        if not self.choices:
            return
        found = [_packed(_columns(choice, route[name])) for name, choice in self.choices.items()]
        rows = max(len(one) for one in found)
        table = np.concatenate([np.broadcast_to(one, (rows, one.shape[1])) for one in found], 1)
        self._routes.update(row.tobytes() for row in table)

    def summary(self) -> Summary:
        """What was counted so far."""
        samples = self._routes.total()
        uses = {name: _use(choice, counts, samples) for name, choice, counts in self._by_choice()}
        return Summary(
            samples=samples,
            choices=uses,
            unique=len(self._routes),
            possible=min(math.prod(use.possible for use in uses.values()), COUNTABLE),
            entropy=_entropy(self._routes.values(), samples),
            top=max(self._routes.values(), default=0) / max(samples, 1),
        )

    def _by_choice(self) -> Iterator[tuple[str, Choice, Counter[bytes]]]:
        ends = [*accumulate(-(-choice.width // 8) for choice in self.choices.values())]
        for (name, choice), start, end in zip(self.choices.items(), [0, *ends], ends, strict=False):
            counts: Counter[bytes] = Counter()
            for route, count in self._routes.items():
                counts[route[start:end]] += count
            yield name, choice, counts


def summarize(routes: Iterable[Route], choices: Mapping[str, Choice]) -> Summary:
    """The use of `routes`, one per batch. They are read once, so they may be generated on the way.

    Coefficients of mixtures are no ways to go, and exits follow thresholds: both are left out.
    """
    tally = Tally({name: one for name, one in choices.items() if one.domain not in _UNCOUNTED})
    for route in routes:
        tally.add(route)
    return tally.summary()


def _is_exclusive(choice: Choice) -> bool:
    """Whether a row picks one column; a mixture counts as its largest part."""
    return choice.domain in (Domain.ONE_HOT, Domain.SIMPLEX)


def _columns(choice: Choice, rows: Tensor) -> Columns:
    """The column of a row, or those that are on (a gain above 0 is)."""
    rows = rows.detach().cpu()
    if _is_exclusive(choice):
        return F.one_hot(rows.argmax(1), choice.width).bool().numpy()
    return (rows > (0 if choice.domain is Domain.GAINS else 0.5)).numpy()


def _packed(columns: Columns) -> npt.NDArray[np.uint8]:
    """Eight columns to a byte: [B, width / 8]."""
    return np.packbits(columns, axis=1)


def _use(choice: Choice, counts: Counter[bytes], samples: int) -> ChoiceUse:
    width = choice.width
    packed = np.frombuffer(b"".join(counts), np.uint8).reshape(len(counts), -(-width // 8))
    on = np.array([*counts.values()], np.int64) @ np.unpackbits(packed, axis=1, count=width)
    return ChoiceUse(
        labels=choice.labels or tuple(map(str, range(width))),
        columns=tuple(int(n) / max(samples, 1) for n in on),
        entropy=_entropy(counts.values(), samples),
        possible=width if _is_exclusive(choice) else min(2**width, COUNTABLE),
    )


def _entropy(counts: Iterable[int], samples: int) -> float:
    return sum(-n / samples * math.log(n / samples) for n in counts if n) if samples else 0.0
