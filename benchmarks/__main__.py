"""``python -m benchmarks [NAME ...]``: run benchmarks, print figures, write ``benchmarks/results/*.json``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import track

from benchmarks import conversion, resolution, routing, skipping, synthesis, training_step, widths

BENCHMARKS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "conversion": conversion.run,
    "widths": widths.run,
    "training_step": training_step.run,
    "skipping": skipping.run,
    "routing": routing.run,
    "synthesis": synthesis.run,
    "resolution": resolution.run,
}


def main(names: list[str]) -> int:
    """Run the named benchmarks, all of them without a name. Returns the exit status."""
    unknown = sorted(set(names) - set(BENCHMARKS))
    console = Console()
    if unknown:
        console.print(f"no benchmark is named {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
        return 2
    for name in track(names or list(BENCHMARKS), description="benchmarks", console=Console(stderr=True)):
        console.rule(name)
        for label, figure in BENCHMARKS[name]().items():
            console.print(f"{label}: {figure}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
