"""``python -m benchmarks.fuzz [COUNT [SEED]]``: so many inputs, of another seed."""

from __future__ import annotations

import sys

from benchmarks.fuzz import run

if __name__ == "__main__":
    print(run(*map(int, sys.argv[1:])))
