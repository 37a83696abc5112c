"""Accelerate's own launcher and trackers, for real: a training script that knows of neither."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dyncompile.train import fit
from tests.train_support import images, perceptron, plain, recipe, run

ROOT = Path(__file__).resolve().parent.parent
TWO = ("--multi_gpu", "--num_processes", "2")
"""How the launcher calls several processes under torchrun; without a GPU they are on the CPU, over gloo."""


def launched(folder: Path, *options: str) -> list[dict[str, Any]]:
    """What every process of ``accelerate launch`` found."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1"]
    done = subprocess.run(
        [*command, "--dynamo_backend", "no", *options, "-m", "tests.launched_worker", str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(path.read_text()) for path in sorted(folder.iterdir())]


@pytest.mark.zoo
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Two processes, two batches of two samples per step each: a step of eight samples."""
    found = launched(tmp_path, *TWO, "--mixed_precision", "no")
    dyn = perceptron()
    alone = fit(dyn, recipe(plain()), images(), batch_size=8, progress=False)
    for one in found:
        assert one["processes"] == len(found) == 2
        assert one["losses"] == pytest.approx(alone.losses, rel=1e-5)
        assert one["sum"] == pytest.approx(float(dyn.get_parameter("inner.weight").detach().sum()), rel=1e-4)
        assert one["dtypes"] == ["torch.float32"]


@pytest.mark.zoo
def test_precision_is_the_launchers(tmp_path: Path) -> None:
    """Nobody tells `fit` of bf16 but ``accelerate launch --mixed_precision``."""
    (one,) = launched(tmp_path, "--cpu", "--num_processes", "1", "--mixed_precision", "bf16")
    assert one["dtypes"] == ["torch.bfloat16"]
    assert one["losses"][-1] < one["losses"][0]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard")
def test_tensorboard(tmp_path: Path) -> None:
    """Event files that TensorBoard reads hold the losses of every step."""
    from tensorboard.backend.event_processing.event_accumulator import (  # pyright: ignore[reportMissingImports]
        EventAccumulator,
    )

    history = run(perceptron(), recipe(), tmp_path, trackers=["tensorboard"])
    folders = sorted({path.parent for path in tmp_path.rglob("*tfevents*")})  # settings have their own
    events = [EventAccumulator(str(folder)).Reload() for folder in folders]
    (found,) = [one for one in events if "train/task" in one.Tags()["scalars"]]
    logged = {event.step: event.value for event in found.Scalars("train/task")}
    assert logged == pytest.approx({step.step: step.terms["task"] for step in history.steps}, rel=1e-6)
