"""A progress bar with the time that is left, on stderr."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.fashion.baselines import Watch


@contextmanager
def bar(what: str, *, shown: bool) -> Generator[Watch]:
    """A function that takes (steps done, steps)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, steps: progress.update(task, completed=done, total=steps)
