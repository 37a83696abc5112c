"""A few of the 10,000 inputs of ``python -m benchmarks fuzz``."""

from __future__ import annotations

from pathlib import Path

from benchmarks.fuzz import run_inputs


def test_hostile_files_end_in_the_librarys_error(tmp_path: Path) -> None:
    outcome = run_inputs(150, 7, tmp_path / "work")
    assert outcome.failures == []
    assert outcome.counts["refused"] > 75
    assert outcome.counts["read"] > 0
    assert outcome.counts["attack"] > 0
    assert outcome.counts["bomb"] > 0
