"""Runs of `benchmarks.fashion` and `benchmarks.text` as tables read them."""

from __future__ import annotations

from pathlib import Path

from benchmarks.fashion.summary import Key, Result
from benchmarks.fashion.summary import read as read_folder
from benchmarks.tables.markdown import MissingResult

HALF = 0.5
"""The target that every method has."""


def read_runs(folder: Path, command: str) -> dict[Key, list[Result]]:
    """Results by (network, method, target), seeds in order. Raises MissingResult if there are none."""
    found = read_folder(folder)
    if not found:
        raise MissingResult(f"{folder} holds no results: run `{command}`")
    return found


def fashion_runs(results: Path) -> dict[Key, list[Result]]:
    """Those on Fashion-MNIST, of the folder of results. Raises MissingResult if there are none."""
    return read_runs(results / "fashion", "make fashion")
