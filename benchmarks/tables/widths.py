"""Time of every width beside its share of MACs."""

from __future__ import annotations

from pathlib import Path

from benchmarks.tables.markdown import block, percent, read, short, source, table, times


def render(results: Path) -> str:
    """One row per model and width."""
    found = read(results, "widths")
    rows = (
        (
            f"{short(model)}, {label}",
            percent(one["macs"], 1),
            times(one["time"]["wall"]),
            times(one["time"]["cpu"]),
        )
        for model, by_label in found["models"].items()
        for label, one in by_label.items()
    )
    note = (
        f"Ratios to the source in eager PyTorch, batch {found['batch']}: medians of interleaved pairs, ± "
        "half the distance of the quartiles."
    )
    heads = ("model, width", "MACs", "wall time", "CPU time")
    return block(table(heads, rows), note, source("python -m benchmarks widths", found))
