"""What a reader of the README wants first: real time beside MACs, and accuracy at half of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.fashion.summary import COLUMNS
from benchmarks.spread import spread
from benchmarks.tables.accuracy import NAMES, ratio
from benchmarks.tables.markdown import (
    block,
    percent,
    read,
    short,
    source,
    table,
    times,
)
from benchmarks.tables.runs import HALF, fashion_runs


def render_speed(results: Path) -> str:
    """One line per kind of decision: MACs and CPU time over the source's, from the long tables."""
    note = (
        "CPU time, one thread: medians of interleaved runs ± half the distance of the quartiles. Routes are "
        "set, and what decides is asked all the same: its MACs and its time are in the figures. Width 0.5: "
        "half of the channels that can move. In deployed models batch norms are folded into convolutions, in "
        "the source they are not; the last column is free of that."
    )
    commands = "`python -m benchmarks deployment`, `skipping` and `resolution`."
    heads = ("deployed", "MACs", "time over the source's", "over its own at full capacity")
    return block(table(heads, speed_rows(results)), note, commands)


def speed_rows(results: Path) -> list[tuple[str, str, str, str]]:
    """Case, MACs, time over the source's and over its own at full capacity."""
    return [*_widths(results), *_skips(results), *_sizes(results)]


def _widths(results: Path) -> Iterator[tuple[str, str, str, str]]:
    for model, parts in read(results, "deployment")["models"].items():
        row = parts.get("width, batch 1", {}).get("0.5")
        if row is not None:
            name = f"{short(model)} at width 0.5, batch 1"
            yield name, percent(row["macs"], 1), times(row["real"]), times(row["own"])


def _skips(results: Path) -> Iterator[tuple[str, str, str, str]]:
    for model, parts in read(results, "skipping")["models"].items():
        for batch in (1, 8):
            row = parts.get(f"decide, skip 50%, batch {batch}, deployed")
            if row is not None:
                name = f"{short(model)}, every sample skips half of the branches, its own, batch {batch}"
                yield name, percent(row["macs"], 1), times(row["time"]["cpu"]), times(row["own"]["cpu"])


def _sizes(results: Path) -> Iterator[tuple[str, str, str, str]]:
    found = read(results, "resolution")
    for batch, row in found["batches"].items():
        name = f"{short(found['model'])}, a third of the images at each of three sizes, batch {batch}"
        source, own = (times(row[f"decided_over_{base}"]["cpu"]) for base in ("source", "native"))
        yield name, percent(row["macs_of_decided"], 1), source, own


def render_accuracy(results: Path) -> str:
    """Fashion-MNIST at half of the MACs: dynamic networks, controls, and how far they are from the source."""
    runs = fashion_runs(results)
    rows = [
        (f"{network}, `{method}`", str(len(found)), *_accuracies(found))
        for (network, method, target), found in runs.items()
        if target == HALF
    ]
    heads = ("half of the MACs", "seeds", *_COLUMNS, "parameters")
    note = (
        "Test accuracy in percent, means over seeds ± standard deviation; static: a network of half of the "
        "MACs, taught alike: one that learns from the source's outputs as well, as `lcnet` does; full size: "
        "a network like the source. All were trained for as many epochs as source and dynamic network "
        "together, from the same seed. Parameters: those that are stored, over the source's; the static "
        "network has about half."
    )
    first = next(iter(runs.values()))[0]
    return block(table(heads, rows), note, NAMES, source("make fashion", first))


_COLUMNS: Mapping[str, Callable[[dict[str, Any]], float]] = {
    "dynamic": COLUMNS["dynamic"],
    "same routes dealt at random": COLUMNS["random"],
    "static network": COLUMNS["static"],
    "ahead of it by": lambda run: COLUMNS["dynamic"](run) - COLUMNS["static"](run),
    "static, taught alike": COLUMNS["taught"],
    "static, full size": COLUMNS["full"],
}


def _accuracies(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for figure in _COLUMNS.values():
        yield spread([100 * figure(dict(run)) for run in found])
    yield ratio([COLUMNS["parameters"](dict(run)) for run in found])
