"""kill -9 while saving and converting: what was there, or what comes, loads. Training: `test_train_state`."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import dyncompile as dc
from dyncompile.cli.convert import convert_checkpoint
from dyncompile.files import NEXT
from tests.support import same, snapshot

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL"),
]


@pytest.fixture(scope="module")
def context() -> Any:
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["tests.save_killed"])
    return made


def killed(process: Any, started: Path, seconds: float) -> None:
    """Start, wait for the mark, and kill after so many seconds."""
    process.start()
    for _ in range(30_000):  # its imports take a while on a busy machine
        if started.exists():
            break
        time.sleep(0.01)
    started.unlink()
    time.sleep(seconds)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGKILL)
    process.join()


@pytest.mark.parametrize("kills", [25, pytest.param(50, marks=pytest.mark.zoo)])
def test_killed_in_saving(kills: int, context: Any, tmp_path: Path) -> None:
    from tests.save_killed import MODELS, save_on

    folder, draw, found = tmp_path / "model", random.Random(kills), Counter[Any]()
    dc.save(MODELS[0], folder)
    for _ in range(kills):
        killed(
            context.Process(target=save_on, args=(str(folder),)),
            folder.with_suffix(".started"),
            draw.uniform(0, 0.15),
        )
        found["under way"] += (folder / NEXT).exists()
        loaded = dc.load(folder)
        (expected,) = (model for model in MODELS if model.history == loaded.history)
        assert same(snapshot(loaded), snapshot(expected))
        found[loaded.history] += 1
    assert len(found) > 2, "the kills did not spread over both models"


@pytest.mark.parametrize("kills", [10, pytest.param(50, marks=pytest.mark.zoo)])
def test_killed_in_converting(kills: int, context: Any, tmp_path: Path) -> None:
    from tests.save_killed import MODELS, NET, SPECS, convert_on

    weights, folder, draw = tmp_path / "net.pth", tmp_path / "out", random.Random(kills)
    torch.save(NET.state_dict(), weights)
    convert_checkpoint(weights, "tests.tiny:conv_net", [SPECS[0]], folder, nullcontext)
    began = time.perf_counter()
    convert_checkpoint(weights, "tests.tiny:conv_net", [SPECS[0]], folder, nullcontext)
    whole = time.perf_counter() - began
    for _ in range(kills):
        killed(
            context.Process(target=convert_on, args=(str(folder), str(weights))),
            folder.with_suffix(".started"),
            draw.uniform(0, 2 * whole),
        )
        loaded = dc.load(folder)
        assert loaded.history in [model.history for model in MODELS]
        assert same(dc.reduce_to_source(loaded), dict(NET.state_dict()))
