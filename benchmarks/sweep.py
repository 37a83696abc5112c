"""A benchmark in steps: figures are written as they are measured, and a run that was cut short goes on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from benchmarks.memory import keep_memory
from benchmarks.record import read, write

Step = TypeVar("Step")
Place = tuple[str, ...]
"""Where a figure stands in the results: names, the outermost first."""
Figures = dict[str, Any]


@dataclass(frozen=True)
class Sweep(Generic[Step]):
    """Steps that fill ``results/NAME.json``, on one thread and without warnings.

    Attributes:
        name: of the file.
        key: under which figures stand in it.
        plan: all steps, in order.
        last: where the last figure of a step stands: a step that has it is done.
        measure: a step's figures with their places, as they come.
        facts: what else the file says.
        load: figures from what the file says under `key`.
        dump: what it says, from figures.
        written: is called with all figures after each that is written.
    """

    name: str
    key: str
    plan: Callable[[], Sequence[Step]]
    last: Callable[[Step], Place]
    measure: Callable[[Step], Iterable[tuple[Place, Any]]]
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    load: Callable[[Any], Figures] = dict
    dump: Callable[[Figures], Any] = dict
    written: Callable[[Figures], object] = lambda figures: None

    def run(self) -> Figures:
        """Measure all steps anew; all figures."""
        return self._filled({}, self.plan())

    def missing(self) -> Figures:
        """Measure what has no results yet; all figures."""
        figures = self.known()
        return self._filled(figures, [step for step in self.plan() if not _holds(figures, self.last(step))])

    def some(self, steps: Sequence[Step]) -> Figures:
        """Measure these, and keep the other results that there are; all figures."""
        return self._filled(self.known(), steps)

    def known(self) -> Figures:
        """What there is so far."""
        return self.load(read(self.name, self.key))

    def _filled(self, figures: Figures, steps: Sequence[Step]) -> Figures:
        torch.set_num_threads(1)
        keep_memory()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for step in steps:
                for place, figure in self.measure(step):
                    _put(figures, place, figure)
                    write(self.name, {self.key: self.dump(figures), **self.facts})
                    self.written(figures)
        return figures


def _holds(figures: Figures, place: Place) -> bool:
    for name in place:
        if name not in figures:
            return False
        figures = figures[name]
    return True


def _put(figures: Figures, place: Place, figure: Any) -> None:
    for name in place[:-1]:
        figures = figures.setdefault(name, {})
    figures[place[-1]] = figure
