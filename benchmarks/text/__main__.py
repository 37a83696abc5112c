"""MiniLM on ham and spam, made dynamic: ``python -m benchmarks.text [--method dsnet] [--effort long]``.

What is left out takes all methods and seeds. Runs that are done are skipped, interrupted ones go on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks.fashion import plot, summary
from benchmarks.fashion.methods import SEEDS
from benchmarks.text.data import load
from benchmarks.text.methods import EFFORTS, METHODS
from benchmarks.text.network import tokenizer
from benchmarks.text.protocol import Run, execute
from dyncompile.errors import DyncompileError


def main(
    method: Annotated[list[str] | None, typer.Option(help=f"of {', '.join(METHODS)}")] = None,
    seed: Annotated[list[int] | None, typer.Option()] = None,
    effort: Annotated[
        str, typer.Option(help=f"of {', '.join(EFFORTS)}; quick ones are no results")
    ] = "short",
    again: Annotated[bool, typer.Option("--again", help="measure anew what is done")] = False,
    silent: Annotated[bool, typer.Option("--silent", help="no progress bars")] = False,
) -> None:
    """Accuracy, MACs and time of a dynamic MiniLM on ham and spam, with static and random controls."""
    errors = Console(stderr=True)
    torch.set_num_threads(1)
    try:
        runs = plan(method or list(METHODS), seed or list(SEEDS), effort)
        waiting = [run for run in runs if again or not run.done]
        data = load(tokenizer()) if waiting else None
        for run in waiting:
            assert data is not None
            errors.print(run.name, highlight=False)
            execute(run, data, progress=not silent)
    except DyncompileError as error:
        errors.print(str(error), markup=False)
        raise typer.Exit(2) from None
    _report(runs[0].result.parent)


def plan(methods: list[str], seeds: list[int], effort: str) -> list[Run]:
    """Every combination. Raises DyncompileError for names that do not exist, all of them."""
    unknown = [*(name for name in methods if name not in METHODS), *({effort} - set(EFFORTS))]
    if unknown:
        known = f"methods: {', '.join(METHODS)}; efforts: {', '.join(EFFORTS)}"
        raise DyncompileError(f"unknown: {', '.join(unknown)}", fix=known)
    return [
        Run(name, target, seed, effort)
        for seed in seeds
        for name in methods
        for target in METHODS[name].targets
    ]


def _report(folder: Path) -> None:
    """Everything that is there so far, and a figure per method."""
    results, console = summary.read(folder), Console()
    for (_, method, target), found in results.items():
        for run in found:
            console.print(f"{method} {target:g} s{run['seed']}", highlight=False)
            for line in describe(run):
                console.print(f"  {line}", highlight=False)
    for method in sorted({key[1] for key in results}):
        runs = [run for key, found in results.items() if key[1] == method for run in found]
        path = folder / f"minilm-{method}.svg"
        path.write_text(plot.figure(f"MiniLM on ham and spam, {method}", plot.points(runs)))
        console.print(f"figure: {path}", markup=False, highlight=False)


def describe(run: summary.Result) -> list[str]:
    """What one run found, line by line."""
    dynamic, small, long = run["dynamic"], *run["static"]
    accuracies = {
        f"dynamic at {dynamic['share']:.1%} of the MACs": dynamic["accuracy"],
        "same routes at random": run["random"]["accuracy"],
        f"fixed routes at {dynamic['share']:.1%}": summary.at_share(run["fixed"], dynamic["share"]),
        f"static, {small['layers']} layers, trained as long": small["accuracy"],
        "source": run["source"]["accuracy"],
        "source trained as long": long["accuracy"],
    }
    times = {
        name: f"CPU {found['cpu']['median']:.2f} ({found['cpu']['low']:.2f} to {found['cpu']['high']:.2f})"
        for name, found in run["speed"].items()
    }
    return [
        *(f"{name}: {value:.2%}" for name, value in accuracies.items()),
        *(f"{name}: {value} of the source's time" for name, value in times.items()),
    ]


if __name__ == "__main__":
    typer.run(main)
