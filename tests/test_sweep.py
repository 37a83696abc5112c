"""A benchmark in steps: what is there stays, what is missing is measured, and the files keep their form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks import latency, record, routing, scaling
from benchmarks.deployment import sweep as deployment
from benchmarks.sweep import Place, Sweep


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    return tmp_path / "x.json"


class Steps:
    """Measures two figures per letter, and notes what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.cut = ""

    def measure(self, step: str) -> Iterator[tuple[Place, int]]:
        self.asked.append(step)
        yield (step, "first"), len(self.asked)
        if step == self.cut:
            raise KeyboardInterrupt
        yield (step, "last"), len(self.asked)

    def sweep(self) -> Sweep[str]:
        return Sweep(
            "x", "models", lambda: "abc", lambda step: (step, "last"), self.measure, {"meaning": "letters"}
        )


def test_a_sweep_goes_on_with_the_step_that_was_cut(file: Path) -> None:
    steps = Steps()
    steps.cut = "b"
    with pytest.raises(KeyboardInterrupt):
        steps.sweep().run()
    found = json.loads(file.read_text())
    assert found["models"] == {"a": {"first": 1, "last": 1}, "b": {"first": 2}}
    assert found["meaning"] == "letters"
    assert "torch" in found["machine"]
    steps.cut = ""
    steps.sweep().missing()
    assert steps.asked == [*"ab", *"bc"]


def test_anew_means_anew_and_some_keeps_the_others(file: Path) -> None:
    steps = Steps()
    steps.sweep().run()
    assert steps.sweep().some("c")["a"] == {"first": 1, "last": 1}
    assert json.loads(file.read_text())["models"]["c"]["last"] == 4
    steps.cut = "a"
    with pytest.raises(KeyboardInterrupt):
        steps.sweep().run()
    assert json.loads(file.read_text())["models"] == {"a": {"first": 5}}


@pytest.mark.parametrize("sweep", [routing.SWEEP, scaling.SWEEP, latency.SWEEP, deployment.SWEEP])
def test_results_on_file_are_found(sweep: Sweep[Any], file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step whose last figure stands in the file, in the file's own form, is left out."""
    plan = list(sweep.plan())
    figures: dict[str, Any] = {}
    for step in plan[:-1]:
        *outer, last = sweep.last(step)
        inner = figures
        for name in outer:
            inner = inner.setdefault(name, {})
        inner[last] = asdict(step) if sweep is scaling.SWEEP else 0
    record.write(sweep.name, {sweep.key: sweep.dump(figures)})
    measured: list[object] = []
    monkeypatch.setitem(vars(sweep), "measure", lambda step: measured.append(step) or [])
    sweep.missing()
    assert measured == plan[-1:]


def test_another_processor_has_a_folder_of_its_own(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "_processor", lambda: "Any(R) Brand(TM) 7 @ 2.0GHz")
    record.write("x", {"models": 1})
    token = record.BESIDE.set(True)
    try:
        assert record.read("x", "models") == {}
        beside = record.write("x", {"models": 2})
    finally:
        record.BESIDE.reset(token)
    assert beside == file.parent / "processors" / "any-brand-7-2-0ghz" / "x.json"
    assert (record.read("x", "models"), json.loads(beside.read_text())["models"]) == (1, 2)
