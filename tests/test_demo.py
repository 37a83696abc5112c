"""The demonstration: honest splits, the loops' rules, paired timing, and a short run from end to end."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from typer.testing import CliRunner

import dyncompile as dc
from dyncompile.cli import app
from dyncompile.demo import DemoConfig
from dyncompile.demo.digits import Digits, load_digits
from dyncompile.demo.network import SmallResNet
from dyncompile.demo.training import recalibrate, sandwich
from dyncompile.latency import Ratio, compare

IMAGES = 1797


@pytest.fixture(scope="module")
def digits() -> Digits:
    return load_digits(0)


@pytest.fixture(scope="module")
def dyn(digits: Digits) -> dc.DynamicModel:
    return dc.dynamize(SmallResNet(), DemoConfig().method, digits.train.images[:2])


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


def test_missing_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else find(name))
    with pytest.raises(dc.DyncompileError, match=r"dyncompile\[demo\]"):
        load_digits(0)


# -- training ---------------------------------------------------------------------------------------


def test_sandwich_sums_the_gradients_of_its_four_widths(dyn: dc.DynamicModel, digits: Digits) -> None:
    images, labels = digits.train.images[:8], digits.train.labels[:8]
    dyn.train().zero_grad()
    sandwich(dyn, images, labels, seed=3)
    actual = dyn.head.weight.grad.clone()  # pyright: ignore
    full, _ = dyn.run(images, policy=dc.Full())
    loss = F.cross_entropy(full, labels)
    for policy in (dc.Smallest(), dc.Sampled(6), dc.Sampled(7)):
        loss = loss + F.cross_entropy(dyn.run(images, policy=policy)[0], full.detach().softmax(1))
    dyn.zero_grad()
    loss.backward()
    torch.testing.assert_close(actual, dyn.head.weight.grad)  # pyright: ignore


def test_recalibration_moves_every_widths_statistics_and_no_weight(
    dyn: dc.DynamicModel, digits: Digits
) -> None:
    before = {name: value.clone() for name, value in dyn.state_dict().items()}
    recalibrate(dyn, digits.validation, 64)
    moved = {name for name, value in dyn.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if "running_" in name or "num_batches" in name}
    assert not dyn.training


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


def test_short_run_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    asked = ["demo", "--epochs", "3", "--slicing-epochs", "1", "--pairs", "2", "--out", str(tmp_path / "new")]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    written: dict[str, Any] = json.loads((tmp_path / "new" / "demo.json").read_text())
    _check_table(done.stdout, written)
    _check_widths(written)
    assert torch.equal(state, torch.get_rng_state())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["demo.json"]


def _check_table(printed: str, written: dict[str, Any]) -> None:
    lines = [line.split() for line in printed.splitlines()]
    header = next(line for line in lines if line[:2] == ["width", "MACs"])
    assert header[-3:] == ["accuracy", "max", "diff"]
    rows = [line for line in lines if line and line[0] in ("0.25", "0.5", "0.75", "1")]
    assert [row[0] for row in rows] == [width["label"] for width in written["widths"]]
    assert all("…" not in word for row in rows for word in row)


def _check_widths(written: dict[str, Any]) -> None:
    widths = written["widths"]
    assert [round(w["macs_share"], 3) for w in widths] == [0.063, 0.251, 0.563, 1]
    assert [w["parameters"] for w in widths] == sorted({w["parameters"] for w in widths})
    assert widths[-1]["parameters"] == written["source_parameters"] == 169_706
    assert all(w["difference"] < 1e-4 and w["same_predictions"] > 0.99 for w in widths)
    assert all(w["latency"]["wall"]["median"] > 0 for w in widths)
    assert written["source_accuracy"] > 0.8
    assert all(line.startswith("ok") for line in written["contract"])


@pytest.mark.parametrize("name", ["epochs", "slicing_epochs", "pairs", "batch"])
def test_settings_below_one_are_refused(name: str) -> None:
    settings: dict[str, Any] = {name: 0}
    with pytest.raises(dc.SpecError, match=name):
        DemoConfig(**settings)
