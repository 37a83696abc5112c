"""``python -m benchmarks [--missing] [NAME ...]``: run benchmarks, print figures, write their results.

These are ``benchmarks/results/*.json``. With ``--missing``, benchmarks that can go on from the results that
there are do; without a name these alone run then.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

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


def main(names: list[str]) -> int:
    """Run the named benchmarks, without a name all that are not long. Returns the exit status."""
    only_missing = "--missing" in names
    names = [name for name in names if name != "--missing"] or list(MISSING if only_missing else BENCHMARKS)
    known = {**BENCHMARKS, **LONG, **(MISSING if only_missing else {})}
    unknown = sorted(set(names) - set(known))
    console = Console()
    if unknown:
        console.print(f"no benchmark is named {', '.join(unknown)}; there are {', '.join(known)}")
        return 2
    for name in track(names, description="benchmarks", console=Console(stderr=True)):
        console.rule(name)
        for label, figure in known[name]().items():
            console.print(f"{label}: {figure}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
