"""Figures in sentences of README and docs: what a reader is told in passing follows the results, too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.fashion.summary import COLUMNS, Result
from benchmarks.tables.markdown import percent, read
from benchmarks.tables.processors import processors
from benchmarks.tables.runs import HALF, fashion_runs


def _between(values: Iterable[float], write: Callable[[float], str] = "{:.1f}".format) -> str:
    """The smallest and the largest."""
    found = sorted(values)
    low, high = write(found[0]), write(found[-1])
    return low if low == high else f"{low.removesuffix(' %')} to {high}"


def _macs(network: str, results: Path) -> str:
    runs = next(found for (net, *_), found in fashion_runs(results).items() if net == network)
    return f"{runs[0]['source']['macs'] / 1e6:.2f} M"


def _halves(results: Path) -> list[Result]:
    """The runs that were asked for half of the MACs."""
    return [run for (*_, target), found in fashion_runs(results).items() if target == HALF for run in found]


def _time(column: str, results: Path) -> str:
    """Of dynamic networks over their sources."""
    return _between(COLUMNS[column](run) for run in _halves(results))


def _static_time(batch: int, results: Path) -> str:
    """Of static networks of half of the MACs over the sources."""
    timed = f"static, batch {batch}"
    return _between(run["speed"][timed]["cpu"]["median"] for run in _halves(results))


def _layers(batch: int, results: Path) -> str:
    """A deployed layer of bases over the static one."""
    return _between(
        by_rows[str(batch)]["static"]["cpu"]["median"]
        for by_rows in read(results, "synthesis")["layers"].values()
    )


def _skipping(kind: str, label: str, results: Path) -> list[dict[str, Any]]:
    """Rows whose label begins so of a kind of model, on any processor; those with nothing skipped apart."""
    return [
        row
        for folder in processors(results).values()
        for by_row in read(folder, "skipping")["models"].values()
        for name, row in by_row.items()
        if name.startswith(label) and name.endswith(kind) and not name.startswith("skip 0%")
    ]


def _saved(kind: str, results: Path) -> str:
    """Of the MACs that are skipped, the share that time follows."""
    return _between((row["realized_own"] for row in _skipping(kind, "skip", results)), percent)


def _asked(results: Path) -> str:
    """What asking the gates takes at most, over the same network at full capacity."""
    return percent(max(row["own"]["cpu"]["median"] - 1 for row in _skipping("deployed", "gates", results)))


def _sizes_mixed(results: Path) -> str:
    """Time of a batch of 32 of three sizes over the source's, by processor."""
    found = {
        name: read(folder, "resolution")["batches"]["32"] for name, folder in processors(results).items()
    }
    ratios = (f"{row['decided_over_source']['cpu']['median']:.2f} on {name}" for name, row in found.items())
    return ", ".join(ratios)


NUMBERS: Mapping[str, Callable[[Path], str]] = {
    "models": lambda results: str(len(read(results, "coverage")["models"])),
    "hostile-files": lambda results: f"{read(results, 'fuzz')['inputs']:,}",
    "resnet-macs": partial(_macs, "resnet"),
    "vit-macs": partial(_macs, "vit"),
    "small-time-1": partial(_time, "time, 1"),
    "small-time-256": partial(_time, "time, 256"),
    "static-time-1": partial(_static_time, 1),
    "static-time-256": partial(_static_time, 256),
    "skipped-deployed": partial(_saved, "deployed"),
    "skipped-plain": partial(_saved, "plain"),
    "gates-deployed": _asked,
    "sizes-32": _sizes_mixed,
    "basis-layers-1": partial(_layers, 1),
    "basis-layers-32": partial(_layers, 32),
}
"""Name of a figure -> its text from the folder of results."""
