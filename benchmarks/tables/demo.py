"""What `dyncompile demo` finds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.tables.markdown import block, percent, read, source, table, times


def render(results: Path) -> str:
    """Every width, specialized, and the gate's choices."""
    found = read(results, "demo")
    gated = found["learned"]
    rows = [_row(one["label"], one["macs"], f"{one['parameters']:,}", one) for one in found["widths"]]
    rows.append(_row("gated", gated["macs_share"] * found["source_macs"], "", gated))
    heads = ("width", "MACs", "share", "parameters", "wall time", "CPU time", "test accuracy")
    config, digits = found["config"], found["digits"]["test"]
    shuffled = percent(gated["shuffled_accuracy"], 1)
    note = (
        f"The static source names {percent(found['source_accuracy'], 1)} of {digits} test digits right; "
        f"one digit is {100 / digits:.1f} points, so these accuracies hardly differ. The gated "
        f"model's widths dealt to other images: {shuffled}. Times: ratios to the eager source, one thread, "
        f"batch {config['batch']}: medians of {config['pairs']} interleaved pairs, ± half the distance of "
        "the quartiles. One run, one seed: this shows that the machinery works, it is no benchmark."
    )
    return block(table(heads, rows), note, source("python -m benchmarks demo", found))


def _row(label: str, macs: float, parameters: str, one: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        label,
        f"{macs / 1e6:.3f} M",
        percent(one["macs_share"], 1),
        parameters,
        times(one["latency"]["wall"]),
        times(one["latency"]["cpu"]),
        percent(one["accuracy"], 1),
    )
