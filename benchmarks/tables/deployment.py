"""Deployed models beside what they replace."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.tables.markdown import block, percent, read, short, source, table, times

_KINDS = ("specialized", "forced", "packed", "gated")


def render(results: Path) -> str:
    """Full capacity and mixtures by model and batch; every width over a static network built by hand.

    With what there is of compiled and of exported models.
    """
    found = read(results, "deployment")
    models = found["models"]
    heads = ("width", "MACs", "time over the source", *(f"{kind} over static" for kind in _KINDS))
    note = (
        "Ratios of CPU times within rounds: medians ± half the distance of the quartiles. Static: a network "
        "of that width, built by hand. Ideal: the static networks, each on its own rows. Memory: weights and "
        "the peak of live activations over those of the source."
    )
    return block(
        table(("CPU time", "deployed, full, over the source"), _full(models)),
        table(heads, _widths(models)),
        table(("mixed widths: ideal time over real", "shared weights", "packed"), _mixed(models)),
        table(("memory, shared weights", "at full", "all widths in the batch"), _memory(models)),
        note,
        source("python -m benchmarks deployment", found),
        *_if_there(results, "deployment_compiled", _compiled),
        *_if_there(results, "export", _exported),
    )


def _if_there(results: Path, name: str, said: Callable[[dict[str, Any]], Iterable[str]]) -> Iterable[str]:
    return said(read(results, name)) if (results / f"{name}.json").exists() else ()


def _full(models: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    for model, rows in models.items():
        for label, one in rows.items():
            if label.startswith("full, "):
                yield f"{short(model)}, {label.removeprefix('full, ')}", times(one)


def _compiled(found: dict[str, Any]) -> Iterable[str]:
    yield table(
        ("CPU time", 'deployed with `backend="inductor"`, full, over the compiled source'),
        _full(found["models"]),
    )
    yield source("python -m benchmarks deployment_compiled", found)


def _exported(found: dict[str, Any]) -> Iterable[str]:
    heads = (
        "ONNX Runtime, batch 1",
        "MACs, least over most",
        "CPU time alike",
        "outputs differ by",
        "largest output",
    )
    rows = (
        (
            f"`{name}`",
            percent(one["share"], 1),
            times(one["time"]["cpu"]),
            f"{one['difference']:.0e}",
            f"{one['largest output']:.2g}",
        )
        for name, one in found["models"].items()
    )
    yield table(heads, rows)
    yield (
        "Files with real `If` nodes, whose decisions are set in the file: everything skipped that can be, "
        "over nothing skipped. Outputs and routes are those of eager PyTorch on three images."
    )
    yield source("python -m benchmarks export", found)


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


def _memory(models: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    for model, rows in models.items():
        for label, one in rows.items():
            if label.startswith("memory, "):
                where = f"{short(model)}, {label.removeprefix('memory, ')}"
                yield where, f"{one['full']:.2f}", f"{one['mixed']:.2f}"
