"""``python -m benchmarks.deployment PATTERN``: parts whose 'MODEL PART' matches a regular expression."""

from __future__ import annotations

import re
import sys

from rich.console import Console

from benchmarks.deployment.sweep import planned, some


def main(pattern: str = "") -> None:
    """Measure what matches, and print all figures that there are."""
    wanted = [(model, part) for model, part in planned() if re.search(pattern, f"{model} {part}")]
    for label, figure in some(wanted).items():
        Console().print(f"{label}: {figure}", highlight=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
