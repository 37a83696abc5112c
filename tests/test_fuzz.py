"""A few of the 10,000 inputs of ``python -m benchmarks fuzz``, and that they would be caught."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.fuzz import reading, run_inputs
from benchmarks.fuzz.watch import watching


def test_hostile_files_end_in_the_librarys_error(tmp_path: Path) -> None:
    outcome = run_inputs(150, 7, tmp_path / "work")
    assert outcome.failures == []
    assert outcome.counts["refused"] > 75
    assert outcome.counts["read"] > 0
    assert outcome.counts["attack"] > 0
    assert outcome.counts["bomb"] > 0


def test_a_reader_that_does_what_files_say_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def obeying(target: Path, *, alone: bool) -> None:
        os.system("true")
        (target.parents[1] / "owned").write_text("x")
        raise ValueError("from inside")

    monkeypatch.setattr(reading, "_read", obeying)
    failures = run_inputs(2, 7, tmp_path / "work").failures
    for sign in ("os.system", "open", "wrote outside", "ValueError: from inside"):
        assert sum(sign in one for one in failures) == 2


@pytest.mark.parametrize(
    ("act", "event"),
    [
        (lambda inside, outside: os.system("true"), "os.system"),
        (lambda inside, outside: outside.write_text("x"), "open"),
        (lambda inside, outside: os.close(os.open(outside, os.O_WRONLY | os.O_CREAT)), "open"),
        (lambda inside, outside: inside.rename(outside), "os.rename"),
        (lambda inside, outside: outside.mkdir(), "os.mkdir"),
        (lambda inside, outside: inside.write_text(inside.read_text()), ""),
    ],
)
def test_the_watch_sees_what_leaves_the_folder(
    act: Callable[[Path, Path], object], event: str, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").touch()
    with watching(str(tmp_path / "in")) as seen:
        act(tmp_path / "in" / "file", tmp_path / "in2")
    assert [one.split(" ")[0] for one in seen] == [event] * bool(event)
