"""Cells, columns and notes as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


class MissingResult(Exception):
    """A table is asked for whose data is not there."""


def read(results: Path, name: str, command: str | None = None) -> dict[str, Any]:
    """``NAME.json`` of the folder. Raises MissingResult, which names the command that writes it."""
    path = results / f"{name}.json"
    if not path.exists():
        raise MissingResult(f"{path} does not exist: run `{command or f'python -m benchmarks {name}'}`")
    return json.loads(path.read_text())


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns of equal width; all but the first are aligned to the right."""
    body = [list(row) for row in rows]
    wide = [max(len(row[i]) for row in (heads, *body)) for i in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, wide, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rule = ["-" * (width + 2) if i == 0 else "-" * (width + 1) + ":" for i, width in enumerate(wide)]
    return "\n".join((line(heads), f"|{'|'.join(rule)}|", *map(line, body)))


def block(*parts: str) -> str:
    """Parts with a blank line between them."""
    return "\n\n".join(parts)


def source(command: str, found: Mapping[str, Any] | None = None) -> str:
    """The command that measured, and on what."""
    if found is None or "machine" not in found:
        return f"`{command}`"
    one = found["machine"]
    threads = "one thread" if one["threads"] == 1 else f"{one['threads']} threads"
    return f"`{command}`; torch {one['torch']}, {one['processor']}, {one['cores']} cores, {threads}."


def percent(value: float | None, digits: int = 0) -> str:
    """A share in percent."""
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def times(ratio: Mapping[str, float]) -> str:
    """A ratio of times: its median, and half the distance of its quartiles."""
    return f"{ratio['median']:.2f} ± {(ratio['high'] - ratio['low']) / 2:.2f}"


def short(model: str) -> str:
    """A specification without its settings."""
    return f"`{model.split('?')[0]}`"
