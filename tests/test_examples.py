"""The examples run, shortened where they train."""

from __future__ import annotations

import importlib
import warnings

import pytest

from dyncompile.train.diagnostics import CollapseWarning


def test_width_slicing(capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module("examples.width_slicing").main()
    assert "width 0.25" in capsys.readouterr().out


def test_train_gates(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():  # one epoch teaches a gate nothing
        warnings.simplefilter("ignore", CollapseWarning)
        importlib.import_module("examples.train_gates").main(epochs=1)
    printed = capsys.readouterr().out
    assert [line.split(":")[0].strip() for line in printed.splitlines() if "MACs" in line][-1] == "learned"
