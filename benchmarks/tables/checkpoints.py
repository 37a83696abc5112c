"""Real checkpoints: before and after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import METHODS, SUBJECTS
from benchmarks.tables.markdown import block, percent, read, source, table

_HEADS = (
    "checkpoint, method",
    "keys",
    "largest difference at full",
    "right: source / at full",
    "loaded without its code",
    "file given back",
    "MACs at the cheapest",
    "CPU seconds",
)


def render(results: Path) -> str:
    """One row per checkpoint and method; what a method refuses is said below."""
    found = read(results, "checkpoints")
    figures: Mapping[str, Mapping[str, Any]] = found["checkpoints"]
    converted = {name: one for name, one in figures.items() if "refused" not in one}
    rows = (_row(name, one) for name, one in sorted(converted.items()))
    return block(
        table(_HEADS, rows),
        _note(converted),
        *_refused(figures),
        *_missing(figures),
        source("make checkpoints", found),
    )


def _row(name: str, one: Mapping[str, Any]) -> tuple[str, ...]:
    subject, _, method = name.partition(" ")
    return (
        f"{subject}, `{method}`",
        str(one["keys"]),
        f"{one['largest difference of outputs at full']:.2g}",
        _right(one),
        _loaded(one),
        "bit for bit" if one["file reduced back bit for bit"] else "**no**",
        percent(one["smallest share of MACs"], 1),
        f"{one['CPU seconds to convert and verify']:.0f}",
    )


def _loaded(one: Mapping[str, Any]) -> str:
    if "largest difference after loading" not in one:
        return "not run yet"
    apart = one["largest difference after loading"]
    return f"same bits, {one['CPU seconds to load']:.0f} s" if apart == 0 else f"**{apart:.2g} apart**"


def _right(one: Mapping[str, Any]) -> str:
    if "task" not in one:
        return "-"
    return f"{percent(one['score of the source'], 2)} / {percent(one['score at full'], 2)}"


def _note(converted: Mapping[str, Mapping[str, Any]]) -> str:
    tasks = {
        name.partition(" ")[0]: f"{one['samples']:,} {one['task']}"
        for name, one in sorted(converted.items())
        if "task" in one
    }
    said = "; ".join(f"{name}: {task}" for name, task in tasks.items())
    return (
        "All invariants of the contract hold on each. Right, of so many: "
        f"{said}. File given back: after saving and loading `dc.reduce_to_source` gives the source's keys, "
        "in their order, with the file's values. Loaded without its code: from the checkpoint's own graphs; "
        "outputs at full, the cheapest, learned, sampled and every column of one-hot choices are those of "
        "before; CPU seconds to load. CPU seconds: reading, converting and verifying."
    )


def _missing(figures: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    names = (f"{subject} {method}" for subject, method in product(SUBJECTS, METHODS))
    missing = [name for name in names if name not in figures]
    return [f"Not run yet: {', '.join(missing)}."] if missing else []


def _refused(figures: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    refused = [f"{name}: {one['refused']}" for name, one in sorted(figures.items()) if "refused" in one]
    return [f"Refused: {'; '.join(refused)}."] if refused else []
