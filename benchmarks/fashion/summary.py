"""The table and the figures of all results so far, from their JSON."""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.record import RESULTS
from benchmarks.spread import spread

FOLDER = RESULTS / "fashion"
Result = dict[str, Any]
Key = tuple[str, str, float]


def read(folder: Path = FOLDER) -> dict[Key, list[Result]]:
    """Results by (network, method, target), seeds in order."""
    found: dict[Key, list[Result]] = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        one = json.loads(path.read_text())
        found[one["network"], one["method"], one["target"]].append(one)
    return dict(sorted(found.items(), key=lambda item: (*item[0][:2], -item[0][2])))


def at_share(fixed: Sequence[Result], share: float) -> float:
    """Accuracy of the fixed routes at a share of MACs, linear between neighbors: a blind mix of the two."""
    rows = sorted((row["share"], row["accuracy"]) for row in fixed)
    if share <= rows[0][0]:
        return rows[0][1]
    for (low, below), (high, above) in itertools.pairwise(rows):
        if share <= high:
            return below + (above - below) * (share - low) / (high - low)
    return rows[-1][1]


COLUMNS: dict[str, Callable[[Result], float]] = {
    "MACs": lambda r: r["dynamic"]["share"],
    "dynamic": lambda r: r["dynamic"]["accuracy"],
    "static": lambda r: r["static"][0]["accuracy"],
    "taught": lambda r: r["static, taught"]["accuracy"] if "static, taught" in r else math.nan,
    "fixed": lambda r: at_share(r["fixed"], r["dynamic"]["share"]),
    "random": lambda r: r["random"]["accuracy"],
    "source": lambda r: r["source"]["accuracy"],
    "full": lambda r: r["static"][1]["accuracy"],
    "parameters": lambda r: r["dynamic"].get("stored_parameter_share", math.nan),
    "time, 1": lambda r: r["speed"]["dynamic, batch 1"]["cpu"]["median"],
    "time, 256": lambda r: r["speed"]["dynamic, batch 256"]["cpu"]["median"],
}
"""Per run and in percent, what `NOTES` explains."""

NOTES = """\
All in percent; mean over seeds ± standard deviation.
MACs           mean share of the source's, decision nets included
dynamic ...    test accuracies: the learned policy;
static         a network of the target's share, trained for as many epochs in total;
taught         one that learns from the source's outputs, too, where the dynamic model does;
fixed          uniform routes of the same dynamic model, interpolated at the same MACs;
random         the same routes dealt out to other images;
source, full   the source; a network of its size, trained for as many epochs in total
parameters     those that are stored, over the source's
time           CPU time of dynamic over source, at batch 1 and 256"""


def table(results: dict[Key, list[Result]]) -> Table:
    """One row per network, method and target."""
    out = Table(title="Fashion-MNIST", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("network", "method", "target", "seeds", *COLUMNS):
        justify = "left" if heading in ("network", "method") else "right"
        out.add_column(heading, justify=justify, no_wrap=True)
    for (network, method, target), runs in results.items():
        cells = [spread([100 * of(run) for run in runs]) for of in COLUMNS.values()]
        out.add_row(network, method, f"{100 * target:g}", str(len(runs)), *cells)
    return out
