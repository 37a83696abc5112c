"""Figures in sentences of README and docs: what a reader is told in passing follows the results, too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.fashion.summary import COLUMNS
from benchmarks.fashion.summary import read as read_runs
from benchmarks.tables.markdown import MissingResult, percent, read


def _between(values: Iterable[float], write: Callable[[float], str] = "{:.1f}".format) -> str:
    """The smallest and the largest."""
    found = sorted(values)
    low, high = write(found[0]), write(found[-1])
    return low if low == high else f"{low.removesuffix(' %')} to {high}"


def _runs(results: Path) -> Iterator[dict[str, Any]]:
    found = [run for runs in read_runs(results / "fashion").values() for run in runs]
    if not found:
        raise MissingResult(f"{results / 'fashion'} holds no results: run `make fashion`")
    yield from found


def _macs(network: str, results: Path) -> str:
    macs = next(run["source"]["macs"] for run in _runs(results) if run["network"] == network)
    return f"{macs / 1e6:.2f} M"


def _time(batch: int, results: Path) -> str:
    """Of dynamic networks over their sources, those that were asked for half of the MACs."""
    return _between(COLUMNS[f"time, {batch}"](run) for run in _runs(results) if run["target"] == 0.5)


def _static_time(batch: int, results: Path) -> str:
    """Of static networks of half of the MACs over the sources."""
    return _between(
        run["speed"][f"static, batch {batch}"]["cpu"]["median"]
        for run in _runs(results)
        if run["target"] == 0.5
    )


def _layers(batch: int, results: Path) -> str:
    """A deployed layer of bases over the static one."""
    return _between(
        by_rows[str(batch)]["static"]["cpu"]["median"]
        for by_rows in read(results, "synthesis")["layers"].values()
    )


def _skipping(
    kind: str,
    label: str,
    figure: Callable[[dict[str, Any]], float],
    write: Callable[[Iterable[float]], str],
    results: Path,
) -> str:
    """Of the rows of a kind of model whose label begins so, those with nothing skipped apart."""
    rows = [
        row
        for by_row in read(results, "skipping")["models"].values()
        for name, row in by_row.items()
        if name.startswith(label) and name.endswith(kind) and not name.startswith("skip 0%")
    ]
    return write(figure(row) for row in rows)


def _percents(values: Iterable[float]) -> str:
    return _between(values, percent)


def _saved(row: dict[str, Any]) -> float:
    return row["realized_own"]


def _asked(row: dict[str, Any]) -> float:
    return row["own"]["cpu"]["median"] - 1


NUMBERS: Mapping[str, Callable[[Path], str]] = {
    "models": lambda results: str(len(read(results, "coverage")["models"])),
    "hostile-files": lambda results: f"{read(results, 'fuzz')['inputs']:,}",
    "resnet-macs": partial(_macs, "resnet"),
    "vit-macs": partial(_macs, "vit"),
    "small-time-1": partial(_time, 1),
    "small-time-256": partial(_time, 256),
    "static-time-1": partial(_static_time, 1),
    "static-time-256": partial(_static_time, 256),
    "skipped-deployed": partial(_skipping, "deployed", "skip", _saved, _percents),
    "skipped-plain": partial(_skipping, "plain", "skip", _saved, _percents),
    "gates-deployed": partial(_skipping, "deployed", "gates", _asked, lambda found: percent(max(found))),
    "basis-layers-1": partial(_layers, 1),
    "basis-layers-32": partial(_layers, 32),
}
"""Name of a figure -> its text from the folder of results."""
