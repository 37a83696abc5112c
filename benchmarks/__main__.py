"""``python -m benchmarks [NAME ...]``: run benchmarks, print figures, write ``benchmarks/results/*.json``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import track

from benchmarks import (
    checkpoints,
    conversion,
    fuzz,
    latency,
    resolution,
    routing,
    skipping,
    synthesis,
    training_step,
    widths,
)

BENCHMARKS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "conversion": conversion.run,
    "widths": widths.run,
    "training_step": training_step.run,
    "skipping": skipping.run,
    "routing": routing.run,
    "synthesis": synthesis.run,
    "resolution": resolution.run,
    "latency": latency.run,
}
LONG: Mapping[str, Callable[[], dict[str, Any]]] = {"checkpoints": checkpoints.run, "fuzz": fuzz.run}
"""Run by name only: they need other packages, or an hour."""


def main(names: list[str]) -> int:
    """Run the named benchmarks, without a name all that are not long. Returns the exit status."""
    known = {**BENCHMARKS, **LONG}
    unknown = sorted(set(names) - set(known))
    console = Console()
    if unknown:
        console.print(f"no benchmark is named {', '.join(unknown)}; there are {', '.join(known)}")
        return 2
    for name in track(names or list(BENCHMARKS), description="benchmarks", console=Console(stderr=True)):
        console.rule(name)
        for label, figure in known[name]().items():
            console.print(f"{label}: {figure}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
