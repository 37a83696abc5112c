"""What `dyncompile demo` finds."""

from __future__ import annotations

from pathlib import Path

from benchmarks.tables.markdown import block, percent, read, source, table, times


def render(results: Path) -> str:
    """Every width, specialized, and the gate's choices."""
    found = read(results, "demo")
    rows = [
        (
            one["label"],
            f"{one['macs'] / 1e6:.3f} M",
            percent(one["macs_share"], 1),
            f"{one['parameters']:,}",
            times(one["latency"]["wall"]),
            times(one["latency"]["cpu"]),
            percent(one["accuracy"], 1),
        )
        for one in found["widths"]
    ]
    gated = found["learned"]
    rows.append(
        (
            "gated",
            f"{gated['macs_share'] * found['source_macs'] / 1e6:.3f} M",
            percent(gated["macs_share"], 1),
            "",
            times(gated["latency"]["wall"]),
            times(gated["latency"]["cpu"]),
            percent(gated["accuracy"], 1),
        )
    )
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
