"""``python -m benchmarks [--missing] [--beside] [NAME ...]``: run benchmarks, print figures, write results.

These are ``benchmarks/results/*.json``. With ``--missing``, benchmarks that can go on from the results that
there are do; without a name these alone run then. With ``--beside``, results of speed on this processor are
kept beside those on others, in ``benchmarks/results/processors``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from benchmarks import (
    checkpoints,
    conversion,
    counting,
    coverage,
    demo,
    deployment,
    export,
    fuzz,
    latency,
    resolution,
    routing,
    scaling,
    skipping,
    synthesis,
    training_step,
    widths,
)
from benchmarks.multiscale import report as multiscale
from benchmarks.record import BESIDE

BENCHMARKS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "demo": demo.run,
    "conversion": conversion.run,
    "counting": counting.run,
    "widths": widths.run,
    "training_step": training_step.run,
    "skipping": skipping.run,
    "routing": routing.run,
    "synthesis": synthesis.run,
    "resolution": resolution.run,
    "latency": latency.run,
    "deployment": deployment.run,
}
LONG: Mapping[str, Callable[[], dict[str, Any]]] = {
    "checkpoints": checkpoints.run,
    "coverage": coverage.run,
    "export": export.run,
    "fuzz": fuzz.run,
    "scaling": scaling.run,
    "deployment_compiled": deployment.compiled,
    "multiscale": multiscale.run,
}
"""Run by name only: they need other packages, data, or an hour."""
MISSING: Mapping[str, Callable[[], dict[str, Any]]] = {
    "deployment": deployment.missing,
    "deployment_compiled": deployment.compiled_missing,
    "export": export.missing,
    "latency": latency.missing,
    "routing": routing.missing,
    "scaling": scaling.missing,
    "skipping": skipping.missing,
}
"""How a benchmark goes on from the results that there are."""

SPEED = ("deployment", "skipping", "resolution")
"""What is compared between processors."""


def main(
    names: Annotated[list[str] | None, typer.Argument(help="all that are not long, if left out")] = None,
    missing: Annotated[bool, typer.Option("--missing", help="go on from the results that there are")] = False,
    beside: Annotated[
        bool, typer.Option("--beside", help="speed on this processor, kept beside that on others")
    ] = False,
) -> None:
    """Run benchmarks, print their figures, write their results."""
    known = {**BENCHMARKS, **LONG, **(MISSING if missing else {})}
    usual = list(MISSING if missing else BENCHMARKS)
    if beside:
        usual, known = list(SPEED), {name: known[name] for name in SPEED}
    unknown = sorted(set(names or ()) - set(known))
    console = Console()
    if unknown:
        console.print(f"no benchmark is named {', '.join(unknown)}; there are {', '.join(known)}")
        raise typer.Exit(2)
    BESIDE.set(beside)
    for name in track(names or usual, description="benchmarks", console=Console(stderr=True)):
        console.rule(name)
        for label, figure in known[name]().items():
            console.print(f"{label}: {figure}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
