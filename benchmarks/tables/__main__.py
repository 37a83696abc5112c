"""``python -m benchmarks.tables [NAME ...]``: fill README and docs/results.md, or print tables."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.record import RESULTS
from benchmarks.tables import RENDERERS
from benchmarks.tables.document import filled
from benchmarks.tables.markdown import MissingResult
from benchmarks.tables.numbers import NUMBERS

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "results.md")


def main(names: list[str]) -> int:
    """Returns the exit status."""
    unknown = [name for name in names if name not in RENDERERS]
    if unknown:
        print(f"no table is named {', '.join(unknown)}; there are {', '.join(RENDERERS)}", file=sys.stderr)
        return 2
    try:
        if not names:
            for path in DOCUMENTS:
                path.write_text(filled(path.read_text(), RENDERERS, NUMBERS, RESULTS))
        for name in names:
            print(RENDERERS[name](RESULTS))
    except (MissingResult, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
