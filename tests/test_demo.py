"""The demonstration: honest splits, the loops' rules, paired timing, and a short run from end to end."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import dyncompile as dc
from dyncompile.cli import app
from dyncompile.demo import DemoConfig
from dyncompile.demo.digits import Digits, Shifted, load_digits
from dyncompile.latency import Ratio, compare

IMAGES = 1797


@pytest.fixture(scope="module")
def digits() -> Digits:
    return load_digits(0)


# -- data -------------------------------------------------------------------------------------------


def test_split_is_disjoint_and_complete(digits: Digits) -> None:
    rows = Counter([*digits.train.rows, *digits.validation.rows, *digits.test.rows])
    assert rows == Counter(range(IMAGES))
    assert [len(part.labels) for part in (digits.train, digits.validation, digits.test)] == [1257, 180, 360]


def test_split_is_stratified(digits: Digits) -> None:
    for part in (digits.train, digits.validation, digits.test):
        shares = part.labels.bincount() / len(part.labels)
        assert shares.min() > 0.09
        assert shares.max() < 0.11


def test_split_follows_the_seed(digits: Digits) -> None:
    assert load_digits(0).test.rows == digits.test.rows
    assert load_digits(1).test.rows != digits.test.rows


def test_batches_are_one_epoch_of_shifted_images(digits: Digits) -> None:
    batches = [*digits.validation.batches(64, torch.Generator().manual_seed(0))]
    labels = torch.cat([labels for _, labels in batches])
    assert labels.bincount().tolist() == digits.validation.labels.bincount().tolist()
    assert {images.shape[1:] for images, _ in batches} == {(1, 8, 8)}


def test_images_are_shifted_anew_whenever_they_are_read(digits: Digits) -> None:
    data = Shifted(digits.train)
    torch.manual_seed(0)
    read = [data[3] for _ in range(20)]
    assert len({image.numpy().tobytes() for image, _ in read}) > 2
    assert {int(label) for _, label in read} == {int(digits.train.labels[3])}
    assert len(data) == len(digits.train.labels)


def test_missing_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else find(name))
    with pytest.raises(dc.DyncompileError, match=r"dyncompile\[demo\]"):
        load_digits(0)


# -- timing -----------------------------------------------------------------------------------------


def test_ratio_is_a_median_with_quartiles() -> None:
    assert Ratio.of([4.0, 1.0, 2.0, 3.0, 5.0]) == Ratio(3.0, 2.0, 4.0)
    assert Ratio.of([2.0]) == Ratio(2.0, 2.0, 2.0)


def test_pairs_alternate_and_compare_run_with_reference() -> None:
    calls: list[str] = []

    def spin(name: str, n: int) -> int:
        calls.append(name)
        return sum(range(n))

    found = compare(lambda: spin("run", 400_000), lambda: spin("reference", 40_000), 5)
    assert found.wall.median > 2
    assert found.cpu.median > 2
    assert calls[6:] == ["run", "reference", "reference", "run"] * 2 + ["run", "reference"]


# -- the whole --------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::dyncompile.errors.DyncompileWarning")  # one epoch of gates
def test_short_run_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    short = ["--epochs", "3", "--slicing-epochs", "1", "--gate-epochs", "1", "--pairs", "2"]
    asked = ["demo", *short, "--out", str(tmp_path / "new")]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    written: dict[str, Any] = json.loads((tmp_path / "new" / "demo.json").read_text())
    _check_table(done.stdout, written)
    _check_widths(written)
    _check_learned(written)
    assert torch.equal(state, torch.get_rng_state())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["demo.json"]


def _check_table(printed: str, written: dict[str, Any]) -> None:
    lines = [line.split() for line in printed.splitlines()]
    header = next(line for line in lines if line[:2] == ["width", "MACs"])
    assert header[-3:] == ["accuracy", "max", "diff"]
    assert any(line[:1] == ["gated"] for line in lines)
    rows = [line for line in lines if line and line[0] in ("0.25", "0.5", "0.75", "1")]
    assert [row[0] for row in rows] == [width["label"] for width in written["widths"]]
    assert all("…" not in word for row in rows for word in row)


def _check_widths(written: dict[str, Any]) -> None:
    widths = written["widths"]
    assert [round(w["macs_share"], 3) for w in widths] == [0.377, 0.535, 0.743, 1]
    assert [w["parameters"] for w in widths] == sorted({w["parameters"] for w in widths})
    assert widths[-1]["parameters"] == written["source_parameters"] == 169_706
    assert all(w["difference"] < 1e-4 and w["same_predictions"] > 0.99 for w in widths)
    assert all(w["latency"]["wall"]["median"] > 0 for w in widths)


def _check_learned(written: dict[str, Any]) -> None:
    learned, widths = written["learned"], written["widths"]
    assert sum(learned["use"].values()) == pytest.approx(1)
    mixed = sum(learned["use"][w["label"]] * w["macs_share"] for w in widths)
    assert learned["macs_share"] == pytest.approx(mixed, abs=0.001)  # the decision net costs a little
    assert learned["macs_share"] > mixed
    assert written["source_accuracy"] > 0.8
    assert all(line.startswith("ok") for line in written["contract"])


@pytest.mark.parametrize("name", ["epochs", "slicing_epochs", "pairs", "batch"])
def test_settings_below_one_are_refused(name: str) -> None:
    settings: dict[str, Any] = {name: 0}
    with pytest.raises(dc.SpecError, match=name):
        DemoConfig(**settings)
