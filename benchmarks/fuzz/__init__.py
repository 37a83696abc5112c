"""Damaged and hostile files: nothing but the library's own error may come of them.

``python -m benchmarks fuzz`` runs 10,000 in ten minutes; `tests/test_fuzz.py` some hundred. An audit hook
watches for calls of the system, sockets, unpickling, and writes outside the working folder; the peak of the
process's memory tells an input that took more than its due.
"""

from benchmarks.fuzz.reading import run, run_inputs

__all__ = ["run", "run_inputs"]
