"""Two processes train as one with the double batch; they are launched once, each test looks at one result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import dyncompile as dc
from dyncompile.train import Moment, Optimization, Recipe, fit
from tests.train_support import conv_net, images, perceptron, plain, recipe, state_of
from tests.train_worker import averaged

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 1e-5
"""Relative: sums of gradients are taken in another order."""


class Results(NamedTuple):
    folder: Path
    found: dict[str, Any]

    def losses(self, name: str) -> list[float]:
        return self.found[name]["losses"]

    def state(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folder / f"{name}.safetensors")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What two processes over gloo made of `tests.train_worker`."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, "-m", "tests.train_worker", str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return Results(folder, json.loads((folder / "found.json").read_text()))


def alone(dyn: dc.DynamicModel, how: Recipe, count: int = 40) -> tuple[list[float], dict[str, Tensor]]:
    """One process with the double batch."""
    history = fit(dyn, how, images(count), batch_size=8, progress=False)
    return history.losses, state_of(dyn)


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    apart = {name: float((a[name] - b[name]).norm() / b[name].norm()) for name in b if b[name].numel()}
    return a.keys() == b.keys() and max(apart.values()) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("averaged", 40), ("uneven", 37), ("accumulated", 40)])
def test_two_processes_equal_one(name: str, count: int, two: Results) -> None:
    """Sandwich steps, clipping, Adam and the moving average; 37 samples make shares of unequal size."""
    losses, state = alone(perceptron(), averaged(), count)
    assert two.losses(name) == pytest.approx(losses, rel=TOLERANCE)
    assert close(two.state(name), state)


@pytest.mark.slow
def test_all_processes_hold_the_same_model(two: Results) -> None:
    """Running statistics included, though each process sees other samples."""
    assert {name: one["same"] for name, one in two.found.items()} == dict.fromkeys(two.found, True)


@pytest.mark.slow
def test_widths_are_drawn_in_step(two: Results) -> None:
    drawn = two.losses("widths")
    assert all(value == int(value) for value in drawn)
    assert len(set(drawn)) > 2


@pytest.mark.slow
def test_unused_parameters(two: Results) -> None:
    """Unused on one process: a zero in the mean. Unused on all: no gradient, so no weight decay either."""

    def mean(moment: Moment) -> Tensor:
        named = dict(moment.dyn.named_parameters())
        return named["inner.weight"].square().mean() + named["inner.bias"].square().mean() / 2

    before = state_of(perceptron())
    losses, state = alone(perceptron(), recipe(plain(mean, base=Optimization(rate=1e-2, decay=0.1))))
    assert two.losses("unused") == pytest.approx(losses, rel=TOLERANCE)
    found = two.state("unused")
    assert close(found, state)
    assert {name for name in before if not torch.equal(before[name], found[name])} == {
        "inner.weight",
        "inner.bias",
    }


@pytest.mark.slow
def test_validation_counts_every_sample_once(two: Results) -> None:
    """29 samples on two processes: the same numbers as one process gives for the same weights."""
    for name, make in (("norms", conv_net), ("loader", perceptron)):
        dyn = make()
        dyn.load_state_dict(two.state(name))
        dyn.eval()
        pixels, labels = images(29, seed=2).tensors
        with torch.no_grad():
            right = float((dyn(pixels).argmax(1) == labels).float().mean())
        assert two.found[name]["validation"][-1]["metric"] == pytest.approx(right, abs=1e-6)


@pytest.mark.slow
def test_resuming(two: Results) -> None:
    assert two.losses("resumed") == two.losses("saved")
    saved, resumed = two.state("saved"), two.state("resumed")
    assert all(torch.equal(saved[name], resumed[name]) for name in saved)
