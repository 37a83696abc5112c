"""Progress of training: a bar on stderr, a callback, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


@dataclass(frozen=True, slots=True)
class Update:
    """Where training stands after a step, or after an epoch's validation.

    Attributes:
        phase: its name.
        epoch, epochs: the running one from 0, and how many the phase has.
        step, steps: steps of the phase that are done, and how many it has.
        loss: sum of all terms in the last step.
        macs: mean share of the source's MACs in the last step.
        validation: numbers of the last validated epoch; empty before the first.
    """

    phase: str
    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    macs: float
    validation: Mapping[str, float] = field(default_factory=dict[str, float])


Watch = Callable[[Update], object]


@contextmanager
def watching(progress: bool | Watch, *, main: bool) -> Generator[Watch]:
    """What is told about every step: `progress` itself, a bar, or nobody. Only the main process tells."""
    if not main or progress is False:
        yield _ignore
    elif callable(progress):
        yield progress
    else:
        with _Bars() as bars:
            yield bars


class _Bars:
    """One line per phase."""

    def __init__(self, console: Console | None = None) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[numbers]}"),
            console=console or Console(stderr=True),
        )
        self._lines: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, update: Update) -> None:
        if update.phase not in self._lines:
            added = self._progress.add_task(
                update.phase, total=update.steps, completed=max(update.step - 1, 0), numbers=""
            )
            self._lines[update.phase] = added
        self._progress.update(
            self._lines[update.phase],
            completed=update.step,
            description=f"{update.phase} {min(update.epoch + 1, update.epochs)}/{update.epochs}",
            numbers=describe(update),
        )


def describe(update: Update) -> str:
    """The numbers of an update on one line."""
    text = f"loss {update.loss:.4g}  MACs {update.macs:.1%}"
    if update.validation:
        text += f"  validation {update.validation['metric']:.4g} at {update.validation['macs']:.1%}"
    return text


def _ignore(_: Update) -> None:
    """Tell nobody."""
