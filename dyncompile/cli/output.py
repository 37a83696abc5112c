"""Where output goes, and how progress and errors look."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from dyncompile.demo import Watch
from dyncompile.errors import ContractError, DyncompileError, InputError
from dyncompile.files import replace_file

out = Console()
"""Results. Like any console of rich it looks up `sys.stdout` at every use."""
err = Console(stderr=True)
"""Progress and errors."""

_FRAME = 4
"""Columns that a panel's border and padding take."""


def say(text: str) -> None:
    """Text as it is: no color, no wrapping."""
    out.file.write(f"{text}\n")


def show(rendered: RenderableType, text: str) -> None:
    """The rendering on a terminal; elsewhere the same as text, which no column width wraps."""
    if out.is_terminal:
        out.print(rendered)
    else:
        say(text)


def create_folder(folder: Path) -> None:
    """Raise DyncompileError if results could not be written there later."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DyncompileError(f"the output directory cannot be created: {error}", where=str(folder)) from None


def check_file(path: Path) -> None:
    """Raise InputError if no file could be written there later: before what takes long."""
    if path.is_dir():
        raise InputError("a directory has the name of the file", where=str(path), fix="name another file")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(
            "the file cannot be written: its directory is missing or write-protected",
            where=str(path),
            fix=f"create {path.parent}, or name another",
        )


def write_file(path: Path, content: str) -> None:
    """Replace a file as a whole. Raises InputError where the disk refuses it."""
    try:
        replace_file(path, content.encode())
    except OSError as error:
        raise InputError(f"the file cannot be written: {error}", where=str(path)) from None


def busy(doing: str) -> AbstractContextManager[object]:
    """A spinner and a clock for work of unknown length; silent where stderr is no terminal."""
    if not err.is_terminal:
        return nullcontext()
    columns = SpinnerColumn(), TextColumn("{task.description} ..."), TimeElapsedColumn()
    bar = Progress(*columns, console=err, transient=True)
    bar.add_task(doing, total=None)
    return bar


@contextmanager
def progress() -> Generator[Watch]:
    """One bar with the remaining time per stage; a stage appears when it first reports."""
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=err) as bars:

        def watch(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield watch


@contextmanager
def errors_as_panels(*, as_json: bool = False) -> Generator[None]:
    """Show the library's own errors without a traceback: exit code 1 for a broken contract, 2 for the rest.

    With `as_json` a broken contract is a result and goes to stdout too.
    """
    try:
        with _readable_warnings():
            yield
    except DyncompileError as error:
        broken = isinstance(error, ContractError)
        if broken and as_json:
            checks = [asdict(check) for check in error.report.checks] if error.report else []
            say(json.dumps({"passed": False, "problem": error.problem, "checks": checks}, indent=2))
        show_error(error)
        raise typer.Exit(1 if broken else 2) from None


@contextmanager
def _readable_warnings() -> Generator[None]:
    """The library's own warnings as one remark each, without the line of code that gave them."""
    before = warnings.showwarning

    def shown(message: Warning | str, category: type[Warning], *rest: Any) -> None:
        if category.__module__.partition(".")[0] == __name__.partition(".")[0]:
            err.print(Text(f"warning: {message}", style="yellow"))
        else:
            before(message, category, *rest)

    with warnings.catch_warnings():
        warnings.showwarning = shown
        yield


def show_error(error: DyncompileError) -> None:
    """The whole message in a frame; no line is wrapped where the output is a file."""
    text = str(error)
    widest = max(map(len, text.splitlines())) + _FRAME
    console = err if err.is_terminal else Console(stderr=True, width=max(widest, err.width))
    console.print(Panel(Text(text), title=type(error).__name__, title_align="left", border_style="red"))
