"""Real time of batches whose rows take routes of their own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from benchmarks.tables.markdown import block, percent, read, short, source, table, times

_SKIP = re.compile(r"skip (\d+)%, (batch \d+)(?:, (\w+))?$")
_GATES = re.compile(r"gates, all kept, (batch \d+)(?:, (\w+))?$")


def render_skipping(results: Path) -> str:
    """Realized share of the ideal saving by rate; time with nothing skipped."""
    found = read(results, "skipping")
    heads = ("model", "gates, nothing skipped", "and over itself", "25 % skipped", "50 %", "75 %")
    rows = [
        (f"{short(model)}, {where}", *cells)
        for model, by_row in found["models"].items()
        for where, cells in _skipped(by_row).items()
    ]
    note = (
        "With gates: CPU time over the source's, and over the same model's without gates. Others: the share "
        "of the ideal saving (MACs removed) that is realized in CPU time, over the source / over the same "
        "model with nothing skipped, and in parentheses the time over the source's. Every sample skips "
        "branches of its own. Deployed: batch norms are folded, which the source's are not."
    )
    return block(table(heads, rows), note, source("python -m benchmarks skipping", found))


def _skipped(by_row: dict[str, Any]) -> dict[str, list[str]]:
    cells: dict[str, list[str]] = {}
    for label, one in by_row.items():
        if gates := _GATES.match(label):
            row = cells.setdefault(_where(gates[1], gates[2]), ["-"] * 5)
            row[:2] = times(one["time"]["cpu"]), times(one["own"]["cpu"])
        elif (skip := _SKIP.match(label)) and skip[1] != "0":
            column = ("25", "50", "75").index(skip[1]) + 2
            shares = f"{percent(one['realized'])} / {percent(one['realized_own'])}"
            text = f"{shares} ({one['time']['cpu']['median']:.2f})"
            cells.setdefault(_where(skip[2], skip[3]), ["-"] * 5)[column] = text
    return cells


def _where(batch: str, kind: str | None) -> str:
    return batch if kind in (None, "plain") else f"{batch}, {kind}"


def render_routing(results: Path) -> str:
    """Time of mixed batches over that of static networks on their rows."""
    found = read(results, "routing")
    rows: list[tuple[str, ...]] = []
    for model, by_row in found["models"].items():
        for batch in dict.fromkeys(label.partition(", ")[2] for label in by_row):
            cells = (by_row.get(f"{kind}, {batch}") for kind in ("full", "together", "apart"))
            rows.append((f"{short(model)}, {batch}", *("-" if c is None else times(c["cpu"]) for c in cells)))
    note = (
        f"`{found['method']}`; CPU time. Full: over the source. Mixed: equally many samples per alternative, "
        "over the static networks of the alternatives on their samples; apart: dealt anew at each of them."
    )
    heads = ("model", "full", "mixed, together", "mixed, apart")
    return block(table(heads, rows), note, source("python -m benchmarks routing", found))


def render_resolution(results: Path) -> str:
    """Time of a batch in which every image has its own size."""
    found = read(results, "resolution")
    rows = (
        (
            f"batch {name}",
            percent(one["macs_of_decided"], 1),
            times(one["decided_over_source"]["cpu"]),
            times(one["decided_over_native"]["cpu"]),
            times(one["mixed_over_ideal"]["cpu"]),
            times(one["predicted_over_native"]["cpu"]),
        )
        for name, one in found["batches"].items()
    )
    sizes = ", ".join(map(str, found["sizes"]))
    note = (
        f"{short(found['model'])} deployed, a third of the images at each of {sizes} pixels; CPU time, the "
        "predictor asked, in all but the column of each size alone. Last column: all images at full size "
        "with the predictor asked, over the same without."
    )
    heads = (
        "",
        "MACs",
        "over the source",
        "over all at full size",
        "over each size alone",
        "the predictor alone",
    )
    return block(table(heads, rows), note, source("python -m benchmarks resolution", found))
