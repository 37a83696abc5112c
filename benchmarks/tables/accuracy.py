"""Accuracy against MACs, with controls."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.fashion.methods import METHODS, SEEDS
from benchmarks.fashion.summary import COLUMNS, Key, Result, at_share
from benchmarks.spread import spread
from benchmarks.tables.markdown import MissingResult, block, percent, source, table
from benchmarks.tables.runs import HALF, fashion_runs, read_runs

_CONTROLS = ("MACs", "dynamic", "random", "fixed", "static", "taught", "source", "full")
_Figures = Mapping[str, Callable[[Result], float]]
_RATIOS: _Figures = {name: COLUMNS[name] for name in ("parameters", "time, 1", "time, 256")}
_TIMES: _Figures = {
    f"{title}, {batch}": lambda run, timed=f"{kind}, batch {batch}": run["speed"][timed]["cpu"]["median"]
    for title, kind in (("time", "dynamic, deployed"), ("static", "static"))
    for batch in (1, 32)
}
NOTES = """\
Test accuracy in percent, means over seeds ± standard deviation. Random: the same routes dealt to other
samples; fixed: one route for all samples, interpolated at the same MACs; taught: a static network that learns
from the source's outputs, too, where the dynamic model does; full: one of the source's size, trained for as
many epochs in total. MACs: decision nets included. Static, trained as long: {static}."""
NAMES = """\
`lcnet-layers` and `lcnet-channels` skip these alone, `lcnet-gains` learns gains instead of bits; the gate
of `dsnet-worth` learns what each width is worth to a sample; `+exits`: with early exits on top, `lcnet` by
layers alone. All settings: `benchmarks/fashion/methods.py`."""


def render_fashion(results: Path) -> str:
    """Fashion-MNIST, one row per network, method and target, and what has fewer seeds than planned."""
    runs = fashion_runs(results)
    notes = (
        NOTES.format(static="a network of the target's MACs"),
        "Parameters: those that are stored, over the source's. Time: the dynamic model's CPU time over the "
        "source's, not deployed, at batch 1 and 256.",
        NAMES,
        _left(runs),
    )
    return _per_run(runs, "make fashion", *filter(None, notes), ratios=_RATIOS)


def _left(runs: Mapping[Key, Sequence[Result]]) -> str:
    """Which planned runs have no results."""
    seeds = {key: len(found) for key, found in runs.items()}
    planned = [
        (network, name, target)
        for name, method in METHODS.items()
        for network in method.specs
        for target in method.targets
    ]
    few = [
        f"{network} `{name}` {percent(target)} ({seeds.get((network, name, target), 0)})"
        for network, name, target in planned
        if seeds.get((network, name, target), 0) < len(SEEDS)
    ]
    return f"Fewer than {len(SEEDS)} seeds: {', '.join(few)}." if few else ""


CURVE_NOTES = """\
Test accuracy in percent at MACs in percent of the source's, means over seeds ± standard deviation. Thresholds
are quantiles of the validation samples' highest confidence: the part that is more confident at no exit stays.
First exit alone: everybody leaves there, which is the preview of `basisnet`; nobody leaves: the specialist
alone, preview paid for; static: networks of the source's size and of 50 % of its MACs, trained as long."""
_KEPT = (0.25, 0.5, 0.75)
"""Parts of the validation samples that pass no exit."""


def render_exits(results: Path) -> str:
    """Early termination on Fashion-MNIST: a few thresholds between leaving first and never leaving."""
    runs = fashion_runs(results)
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for (network, method, _), ones in runs.items():  # targets differ in one threshold of the same model
        for one in ones:
            by_seed = found.setdefault((network, method), {})
            if "curve" in one and (one["seed"] not in by_seed or one["target"] == HALF):
                by_seed[one["seed"]] = one
    rows = [
        (f"{network}, `{method}`", str(len(by_seed)), *_along(list(by_seed.values())))
        for (network, method), by_seed in found.items()
        if by_seed and "+" not in method
    ]
    if not rows:
        raise MissingResult(f"{results / 'fashion'} holds no model with exits: run `make fashion`")
    kept = (f"{percent(part)} stay" for part in _KEPT)
    heads = (
        "network, method",
        "seeds",
        "first exit alone",
        *kept,
        "nobody leaves",
        "static, 50 %",
        "static, full",
    )
    first = next(iter(runs.values()))[0]
    return block(table(heads, rows), CURVE_NOTES, source("make fashion", first))


def _along(found: list[dict[str, Any]]) -> Iterator[str]:
    """Cells of one method: accuracy at MACs, over its seeds."""
    steps = len(found[0]["curve"]) - 1
    yield _at([one["fixed"][0] for one in found])
    for part in _KEPT:
        yield _at([one["curve"][round(part * steps)] for one in found])
    yield _at([one["fixed"][-1] for one in found])
    halves = [one["static"][0] for one in found if one["target"] == HALF]
    yield _at(halves) if halves else "-"
    yield _at([one["static"][1] for one in found])


def _at(rows: list[dict[str, Any]]) -> str:
    accuracy = spread([100 * row["accuracy"] for row in rows])
    return f"{accuracy} at {100 * statistics.fmean(row['share'] for row in rows):.0f} %"


def render_text(results: Path) -> str:
    """MiniLM on ham and spam."""
    folders = sorted(path for path in (results / "text").glob("*") if any(path.glob("*.json")))
    if not folders:
        raise MissingResult(f"{results / 'text'} holds no results: run `make text`")
    notes = (
        NOTES.format(static="the first three layers, half of the MACs, in every row"),
        "Time: the dynamic model's CPU time over the source's, deployed, at batch 1 and 32, and that of the "
        "static network.",
    )
    runs = (read_runs(folder, "make text") for folder in folders)
    return block(*(_per_run(found, "make text", *notes, ratios=_TIMES) for found in runs))


def _per_run(runs: Mapping[Key, Sequence[Result]], command: str, *notes: str, ratios: _Figures) -> str:
    """One row per network, method and target."""
    rows = (
        (
            f"{network}, `{method}`, {100 * target:g} %",
            str(len(found)),
            *(spread([100 * COLUMNS[column](run) for run in found]) for column in _CONTROLS),
            *(ratio([figure(run) for run in found]) for figure in ratios.values()),
        )
        for (network, method, target), found in runs.items()
    )
    heads = ("network, method, target", "seeds", *_CONTROLS, *ratios)
    first = next(iter(runs.values()))[0]
    return block(table(heads, rows), *notes, source(command, first))


def ratio(values: Sequence[float]) -> str:
    """A mean of ratios."""
    return f"{statistics.fmean(values):.2f}" if values and not math.isnan(sum(values)) else "-"


def render_multiscale(results: Path) -> str:
    """Products in scenes: learned sizes against fixed ones at the same MACs."""
    found = [json.loads(path.read_text()) for path in sorted((results / "multiscale").glob("s*.json"))]
    if not found:
        raise MissingResult(
            f"{results / 'multiscale'} holds no results: run `python -m benchmarks multiscale`"
        )
    rows = [_fixed(found, k) for k in range(len(found[0]["fixed"]))]
    rows += [_learned(found, k) for k in range(len(found[0]["learned"]))]
    note = f"Test accuracy in percent, means over {len(found)} seeds ± standard deviation; source: " + spread(
        [100 * one["source"]["accuracy"] for one in found]
    )
    heads = ("", "MACs", "accuracy", "same sizes at random", "fixed sizes at these MACs")
    return block(table(heads, rows), note, source("python -m benchmarks multiscale", found[0]))


def _fixed(found: list[dict[str, Any]], k: int) -> tuple[str, ...]:
    rows = [one["fixed"][k] for one in found]
    accuracy = spread([100 * row["accuracy"] for row in rows])
    return f"all at {rows[0]['label']}", percent(rows[0]["share"], 1), accuracy, "-", "-"


def _learned(found: list[dict[str, Any]], k: int) -> tuple[str, ...]:
    rows = [one["learned"][k] for one in found]
    return (
        f"learned, budget {percent(rows[0]['target'])}",
        percent(statistics.fmean(row["share"] for row in rows), 1),
        spread([100 * row["accuracy"] for row in rows]),
        spread([100 * row["random"]["accuracy"] for row in rows]),
        spread([100 * at_share(one["fixed"], row["share"]) for one, row in zip(found, rows, strict=True)]),
    )
