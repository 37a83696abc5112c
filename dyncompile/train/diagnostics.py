"""How routes are used: columns per choice, distinct routes, entropies, and whether routing has collapsed.

Routes are counted, not kept, so that memory grows with the number of distinct routes alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from dyncompile.program import Choice, Domain, Route

Key = tuple[int, ...]
"""What one sample does at one choice: its column, or the columns that are on."""

_ENOUGH = 10
"""Samples (per column, where columns are judged) below which nothing is said about collapse."""


class CollapseWarning(UserWarning):
    """Decision nets that no longer decide."""


@dataclass(frozen=True)
class ChoiceUse:
    """How one choice was used.

    Attributes:
        labels: names of the columns.
        columns: share of the samples that had each column on.
        entropy: of what samples do at this choice, in nats.
        possible: number of different rows that the choice offers (bits: 2 to the width).
    """

    labels: tuple[str, ...]
    columns: tuple[float, ...]
    entropy: float
    possible: int


@dataclass(frozen=True)
class Summary:
    """How a set of routes is used.

    Attributes:
        samples: number of rows counted.
        choices: use of every choice by name.
        unique: number of distinct routes.
        possible: number of routes that there could be.
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
                f"all {self.samples} samples take one of {self.possible} routes: the gates have collapsed. "
                "Lower the gates' learning rate, raise the weight of the sparsification term, add noise "
                "(Learned(noise=True)), or see that the target lies between the cheapest and the full route",
            )
        return tuple(text for name, use in self.choices.items() if (text := self._unused(name, use)))

    def _unused(self, name: str, use: ChoiceUse) -> str:
        never = [label for label, share in zip(use.labels, use.columns, strict=True) if share == 0]
        if not never or self.samples < _ENOUGH * len(use.labels):
            return ""
        return (
            f"choice {name!r} never takes {', '.join(never)} (of {', '.join(use.labels)}) in {self.samples} "
            "samples: leave such columns out, or raise the noise or lower the temperature of the gate phase"
        )


@dataclass
class Tally:
    """Counts routes as they come: ``tally.add(route)`` per batch, then ``tally.summary()``."""

    choices: Mapping[str, Choice]
    _routes: Counter[tuple[Key, ...]] = field(default_factory=Counter[tuple[Key, ...]])

    def add(self, route: Route) -> None:
        """Count the rows of a route that names every choice: [B, width] each."""
        if not self.choices:
            return
        keys = [_keys(choice, route[name]) for name, choice in self.choices.items()]
        rows = max(len(key) for key in keys)
        table = torch.cat([key.expand(rows, -1) for key in keys], 1)
        found: list[list[int]] = table.tolist()  # pyright: ignore
        ends = [*accumulate(key.shape[1] for key in keys)]
        spans = [*zip([0, *ends], ends, strict=False)]
        for row, count in Counter(map(tuple, found)).items():
            self._routes[tuple(row[start:end] for start, end in spans)] += count

    def summary(self) -> Summary:
        """What was counted so far."""
        samples = sum(self._routes.values())
        uses = {
            name: _use(choice, self._of_choice(at), samples)
            for at, (name, choice) in enumerate(self.choices.items())
        }
        return Summary(
            samples=samples,
            choices=uses,
            unique=len(self._routes),
            possible=math.prod(use.possible for use in uses.values()),
            entropy=_entropy(self._routes.values(), samples),
            top=max(self._routes.values(), default=0) / max(samples, 1),
        )

    def _of_choice(self, at: int) -> Counter[Key]:
        counted: Counter[Key] = Counter()
        for route, count in self._routes.items():
            counted[route[at]] += count
        return counted


def summarize(routes: Iterable[Route], choices: Mapping[str, Choice]) -> Summary:
    """The use of `routes`, one per batch. They are read once, so they may be generated on the way."""
    tally = Tally(choices)
    for route in routes:
        tally.add(route)
    return tally.summary()


def _is_exclusive(choice: Choice) -> bool:
    """Whether a row picks one column; a mixture counts as its largest part."""
    return choice.domain in (Domain.ONE_HOT, Domain.SIMPLEX)


def _keys(choice: Choice, rows: Tensor) -> Tensor:
    """int64 [B, 1] or [B, width]: the column, or which columns are on (a gain above 0 is)."""
    rows = rows.detach().cpu()
    if _is_exclusive(choice):
        return rows.argmax(1, keepdim=True)
    return (rows > (0 if choice.domain is Domain.GAINS else 0.5)).long()


def _use(choice: Choice, counts: Counter[Key], samples: int) -> ChoiceUse:
    labels = choice.labels or tuple(map(str, range(choice.width)))
    on = [0] * choice.width
    for key, count in counts.items():
        for column in key if _is_exclusive(choice) else (i for i, bit in enumerate(key) if bit):
            on[column] += count
    return ChoiceUse(
        labels=labels,
        columns=tuple(n / max(samples, 1) for n in on),
        entropy=_entropy(counts.values(), samples),
        possible=choice.width if _is_exclusive(choice) else 2**choice.width,
    )


def _entropy(counts: Iterable[int], samples: int) -> float:
    return sum(-n / samples * math.log(n / samples) for n in counts if n) if samples else 0.0
