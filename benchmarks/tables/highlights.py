"""What a reader of the README wants first: real time beside MACs, and accuracy at half of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.fashion.summary import COLUMNS
from benchmarks.fashion.summary import read as read_runs
from benchmarks.spread import spread
from benchmarks.tables.markdown import (
    MissingResult,
    block,
    percent,
    read,
    short,
    source,
    table,
    times,
)

_HALF = 0.5


def render_speed(results: Path) -> str:
    """One line per kind of decision: MACs and CPU time over the source's, from the long tables."""
    rows = [*_widths(results), *_skips(results), *_sizes(results)]
    note = (
        "CPU time over the source network's, one thread: medians of interleaved runs ± half the distance of "
        "the quartiles. Width 0.5: half of the channels that can move, for all samples."
    )
    commands = "`python -m benchmarks deployment`, `skipping` and `resolution`."
    return block(table(("deployed", "MACs", "time over the source's"), rows), note, commands)


def _widths(results: Path) -> Iterator[tuple[str, str, str]]:
    for model, parts in read(results, "deployment")["models"].items():
        row = parts.get("width, batch 1", {}).get("0.5")
        if row is not None:
            yield f"{short(model)} at width 0.5", percent(row["macs"], 1), times(row["real"])


def _skips(results: Path) -> Iterator[tuple[str, str, str]]:
    for model, parts in read(results, "skipping")["models"].items():
        row = parts.get("skip 50%, batch 1, deployed")
        if row is not None:
            name = f"{short(model)}, every sample skips half of the branches, its own"
            yield name, percent(row["macs"], 1), times(row["time"]["cpu"])


def _sizes(results: Path) -> Iterator[tuple[str, str, str]]:
    found = read(results, "resolution")
    for batch, row in found["batches"].items():
        name = f"{short(found['model'])}, a third of the images at each of three sizes, batch {batch}"
        yield name, percent(row["macs_of_mixed"], 1), times(row["mixed_over_native"]["cpu"])


def render_accuracy(results: Path) -> str:
    """Fashion-MNIST at half of the MACs: dynamic networks, controls, and how far they are from the source."""
    rows = [
        (f"{network}, `{method}`", str(len(found)), *_accuracies(found))
        for (network, method, target), found in read_runs(results / "fashion").items()
        if target == _HALF
    ]
    if not rows:
        raise MissingResult(f"{results / 'fashion'} holds no results: run `make fashion`")
    heads = (
        "half of the MACs",
        "seeds",
        "dynamic",
        "same routes dealt at random",
        "static network",
        "ahead of it by",
        "static, taught alike",
        "source",
    )
    note = (
        "Test accuracy in percent, means over seeds ± standard deviation; static: a network of half of the "
        "MACs, trained for as many epochs as source and dynamic network together, of the same seed; taught "
        "alike: one that learns from the source's outputs as well, as `lcnet` does."
    )
    first = next(iter(read_runs(results / "fashion").values()))[0]
    return block(table(heads, rows), note, source("make fashion", first))


_FIGURES: Sequence[Callable[[dict[str, Any]], float]] = (
    COLUMNS["dynamic"],
    COLUMNS["random"],
    COLUMNS["static"],
    lambda run: COLUMNS["dynamic"](run) - COLUMNS["static"](run),
    COLUMNS["taught"],
    COLUMNS["source"],
)


def _accuracies(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for figure in _FIGURES:
        yield spread([100 * figure(dict(run)) for run in found])
