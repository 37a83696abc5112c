"""Deployed models beside what they replace."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.tables.markdown import block, percent, read, short, source, table, times

_KINDS = ("specialized", "forced", "packed", "gated")


def render(results: Path) -> str:
    """Full capacity and mixtures by model and batch; every width over a static network built by hand."""
    found = read(results, "deployment")
    models = found["models"]
    full = table(
        ("CPU time", "deployed, full, over the source"),
        (
            (f"{short(model)}, {label.removeprefix('full, ')}", times(one))
            for model, rows in models.items()
            for label, one in rows.items()
            if label.startswith("full, ")
        ),
    )
    heads = ("width", "MACs", "time over the source", *(f"{kind} over static" for kind in _KINDS))
    mixed = table(("mixed widths: ideal time over real", "shared weights", "packed"), _mixed(models))
    note = (
        "Ratios of CPU times within rounds: medians ± half the distance of the quartiles. Static: a network "
        "of that width, built by hand. Ideal: the static networks, each on its own rows."
    )
    widths = table(heads, _widths(models))
    return block(full, widths, mixed, note, source("python -m benchmarks deployment", found))


def _widths(models: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    for model, rows in models.items():
        for label, one in rows.items():
            if label.startswith("width, "):
                where = label.removeprefix("width, ")
                for width, row in one.items():
                    ratios = (times(row[kind]) for kind in _KINDS)
                    at = f"{short(model)}, {width}, {where}"
                    yield at, percent(row["macs"], 1), times(row["real"]), *ratios


def _mixed(models: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    for model, rows in models.items():
        for label, one in rows.items():
            if label.startswith("mixed, "):
                where = f"{short(model)}, {label.removeprefix('mixed, ')}"
                yield where, times(one["shared"]), times(one["packed"])
