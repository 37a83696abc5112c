"""``python -m benchmarks.fashion [--network resnet] [--method dsnet] [--target 0.5] [--seed 0] [--quick]``.

Options can be repeated; what is left out takes all. Runs that are done are skipped, interrupted ones go on.
Processes side by side must differ in network or seed: runs of one network and seed share a folder of weights.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks.fashion import plot, summary
from benchmarks.fashion.data import load
from benchmarks.fashion.methods import EFFORTS, METHODS, SEEDS, quick
from benchmarks.fashion.protocol import Run, execute
from dyncompile.errors import DyncompileError

_WIDEST = 500
"""Columns that the table may take; a narrower terminal wraps its lines."""


def main(
    network: Annotated[list[str] | None, typer.Option(help=f"of {', '.join(EFFORTS)}")] = None,
    method: Annotated[list[str] | None, typer.Option(help=f"of {', '.join(METHODS)}")] = None,
    target: Annotated[list[float] | None, typer.Option(help="share of the source's MACs; by method")] = None,
    seed: Annotated[list[int] | None, typer.Option()] = None,
    threads: Annotated[
        int, typer.Option(help="of torch; on two cores, two runs with one each are faster")
    ] = 1,
    trial: Annotated[
        bool, typer.Option("--quick", help="tries the machinery; no results are written")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="measure anew what is done")] = False,
    silent: Annotated[bool, typer.Option("--silent", help="no progress bars")] = False,
) -> None:
    """Accuracy, MACs and time of dynamic networks on Fashion-MNIST, with static and random controls."""
    errors = Console(stderr=True)
    torch.set_num_threads(threads)
    try:
        runs = plan(network or list(EFFORTS), method or list(METHODS), target, seed, trial=trial)
        left = [run for run in runs if again or not run.done or run.lacks_control]
        _execute(left, errors, progress=not silent, anew=again)
    except DyncompileError as error:
        errors.print(str(error), markup=False)
        raise typer.Exit(2) from None
    _report(runs[0].result.parent)


def _report(folder: Path) -> None:
    """Everything that is there so far, not these runs alone."""
    results, console = summary.read(folder), Console()
    table = summary.table(results)
    needed = console.measure(table, options=console.options.update_width(_WIDEST)).maximum
    console.width = max(console.width, needed)
    console.print(table)
    console.print(summary.NOTES, highlight=False)
    for path in plot.write_all(results, folder):
        console.print(f"figure: {path}", markup=False, highlight=False)


def plan(
    networks: list[str],
    methods: list[str],
    targets: list[float] | None,
    seeds: list[int] | None,
    *,
    trial: bool,
) -> list[Run]:
    """Every combination. Raises DyncompileError for names that do not exist, all of them."""
    unknown = [*(name for name in networks if name not in EFFORTS), *(m for m in methods if m not in METHODS)]
    if unknown:
        known = f"networks: {', '.join(EFFORTS)}; methods: {', '.join(METHODS)}"
        raise DyncompileError(f"unknown: {', '.join(unknown)}", fix=known)
    efforts = {name: quick(EFFORTS[name]) if trial else EFFORTS[name] for name in networks}
    runs = [
        Run(network, method, target, seed, efforts[network], trial)
        for network, seed, method in itertools.product(networks, seeds or SEEDS, methods)
        if network in METHODS[method].specs
        for target in targets or METHODS[method].targets
    ]
    if not runs:
        raise DyncompileError(f"{', '.join(methods)} cannot be applied to {', '.join(networks)}")
    for run in runs:  # a target that a recipe refuses is refused before anything trains
        METHODS[run.method].spec(run.network, run.target)
        METHODS[run.method].recipes(run.effort, run.target)
    return runs


def _execute(runs: list[Run], console: Console, *, progress: bool, anew: bool) -> None:
    if not runs:
        return
    data, start = load(), time.perf_counter()
    failed: list[DyncompileError] = []
    for number, run in enumerate(runs):
        spent = time.perf_counter() - start
        left = f", about {spent / number * (len(runs) - number) / 60:.0f} min left" if number else ""
        console.print(f"run {number + 1} of {len(runs)}: {run.name}{left}", highlight=False)
        try:
            execute(run, data, progress=progress, anew=anew)
        except DyncompileError as error:  # a target out of reach: hours of other runs must not wait for it
            console.print(str(error), markup=False)
            failed.append(error)
    if failed:
        raise DyncompileError(
            f"{len(failed)} of {len(runs)} runs failed", fix="read what each of them says above"
        )


if __name__ == "__main__":
    typer.run(main)
