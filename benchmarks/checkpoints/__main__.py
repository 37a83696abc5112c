"""``python -m benchmarks.checkpoints [SUBJECT ...] [METHOD ...]``: some of them."""

from __future__ import annotations

import sys

from benchmarks.checkpoints import run

if __name__ == "__main__":
    for label, figure in run(sys.argv[1:]).items():
        print(label, figure)
