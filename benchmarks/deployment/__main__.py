"""``python -m benchmarks.deployment [--only PATTERN] [--missing]``: some of the parts, or those that lack."""

from __future__ import annotations

import argparse
import re

from rich.console import Console

from benchmarks.deployment.sweep import planned, read, sweep


def main() -> None:
    """Measure what is asked for, and print all figures that there are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="regular expression on 'MODEL PART'")
    parser.add_argument("--missing", action="store_true", help="only parts without results")
    options = parser.parse_args()
    known = read() if options.missing else {}
    wanted = [
        (model, part)
        for model, part in planned()
        if re.search(options.only, f"{model} {part}") and part not in known.get(model, {})
    ]
    for label, figure in sweep(wanted).items():
        Console().print(f"{label}: {figure}", highlight=False)


if __name__ == "__main__":
    main()
