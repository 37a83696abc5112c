"""Training goes on bit for bit where it stopped; foreign and damaged states are refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import dyncompile as dc
from dyncompile.files import ASIDE
from dyncompile.train import Optimization, fit
from dyncompile.train.checkpoints import Checkpoints
from dyncompile.train.history import read_history
from dyncompile.train.state import load_model
from tests.train_support import (
    GATED,
    Interrupted,
    conv_net,
    conv_source,
    gate_phase,
    images,
    plain,
    recipe,
    run,
    same_state,
    sandwich,
    state_of,
    stop_after,
    two_phases,
)

STEPS = 20
"""Of `two_phases` on 40 images in batches of 8: two phases of two epochs of five steps."""


def names(folder: Path) -> list[str]:
    return Checkpoints(folder, 1).names()


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and final state of a run that nothing stopped and that wrote nothing."""
    dyn = conv_net()
    return run(dyn, two_phases()).losses, state_of(dyn)


# -- resuming ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stopped", [3, 5, 6, 8, 11, 13, 20])
def test_resumes_bit_for_bit(stopped: int, uninterrupted: Any, tmp_path: Path) -> None:
    """Within epochs and at their ends, in both phases; the model has dropout, the terms a memory."""
    with pytest.raises(Interrupted):
        run(conv_net(), two_phases(), tmp_path, checkpoint_every=2, progress=stop_after(stopped))
    dyn = conv_net(seed=5)
    history = run(dyn, two_phases(), tmp_path, checkpoint_every=2)
    losses, state = uninterrupted
    assert history.losses == losses
    assert same_state(state_of(dyn), state)


@pytest.mark.parametrize("stopped", [3, 8, 12, 14])
def test_decision_nets_resume_bit_for_bit(stopped: int, tmp_path: Path) -> None:
    """Gumbel noise in every decision, dropout in the base, two optimizers with states of their own."""
    both = gate_phase(trains="all", epochs=2, frozen_norms=False, base=Optimization("sgd", 1e-2))
    how = recipe(sandwich(epochs=1), both)
    expected, dyn = conv_net(GATED), conv_net(GATED, seed=5)
    losses = run(expected, how).losses
    assert len(set(losses)) == 15
    with pytest.raises(Interrupted):
        run(conv_net(GATED), how, tmp_path, checkpoint_every=1, progress=stop_after(stopped))
    assert run(dyn, how, tmp_path, checkpoint_every=1).losses == losses
    assert same_state(state_of(dyn), state_of(expected))


def test_several_interruptions(uninterrupted: Any, tmp_path: Path) -> None:
    for _ in range(4):
        with pytest.raises(Interrupted):
            run(conv_net(), two_phases(), tmp_path, checkpoint_every=1, progress=stop_after(4))
    dyn = conv_net()
    assert run(dyn, two_phases(), tmp_path, checkpoint_every=1).losses == uninterrupted[0]
    assert same_state(state_of(dyn), uninterrupted[1])


def test_checkpoints_do_not_change_training(uninterrupted: Any, tmp_path: Path) -> None:
    assert run(conv_net(), two_phases(), tmp_path, checkpoint_every=1).losses == uninterrupted[0]


def test_a_loader_resumes_too(tmp_path: Path) -> None:
    """It shuffles by torch's global generator, which is seeded; what is done is read and dropped."""
    _loader_resumes(lambda: torch.utils.data.DataLoader(images(), 8, shuffle=True), tmp_path)


def test_a_loader_with_a_generator_in_its_batch_sampler_resumes_too(tmp_path: Path) -> None:
    def loader() -> Any:
        order = torch.utils.data.RandomSampler(images(), generator=torch.Generator())
        batches = torch.utils.data.BatchSampler(order, 8, drop_last=False)
        return torch.utils.data.DataLoader(images(), batch_sampler=batches)

    _loader_resumes(loader, tmp_path)


def _loader_resumes(loader: Callable[[], Any], tmp_path: Path) -> None:
    def train(folder: Path | None, **more: Any) -> Any:
        return fit(conv_net(), recipe(), loader(), directory=folder, **{"progress": False, **more})

    expected = train(None).losses
    with pytest.raises(Interrupted):
        train(tmp_path, checkpoint_every=1, progress=stop_after(7))
    assert train(tmp_path, checkpoint_every=1).losses == expected


def test_a_phase_with_an_average_resumes_at_its_beginning(tmp_path: Path) -> None:
    how = recipe(plain(), sandwich(epochs=1))
    steps = plain().epochs * 5
    whole = conv_net()
    history = run(whole, how)
    with pytest.raises(Interrupted):
        run(conv_net(), how, tmp_path, progress=stop_after(steps + 1))
    resumed = conv_net()
    assert run(resumed, how, tmp_path).losses == history.losses
    assert same_state(state_of(resumed), state_of(whole))


def test_finished_training_is_loaded(tmp_path: Path) -> None:
    first, again = conv_net(), conv_net(seed=5)
    history = run(first, two_phases(), tmp_path)
    assert run(again, two_phases(), tmp_path).losses == history.losses
    assert same_state(state_of(first), state_of(again))


def quiet(output: torch.Tensor, target: object) -> float:
    """A metric that falls as training makes logits larger: the first epoch is the best."""
    return -float(output.abs().mean())


def test_best_epoch_survives_an_interruption(tmp_path: Path) -> None:
    how = recipe(plain(epochs=5, keep="best"))
    settings: dict[str, Any] = {"val_data": images(seed=2), "metric": quiet, "keep_checkpoints": 1}
    expected, first, last = conv_net(), conv_net(), conv_net()
    values = [epoch.validation["metric"] for epoch in run(expected, how, **settings).epochs]
    assert values == sorted(values, reverse=True)
    with pytest.raises(Interrupted):
        run(first, how, tmp_path, progress=stop_after(22), **settings)
    dyn = conv_net(seed=5)
    run(dyn, how, tmp_path, **settings)
    run(last, recipe(plain(epochs=5)), **settings)
    assert same_state(state_of(dyn), state_of(expected))
    assert not same_state(state_of(dyn), state_of(last))


# -- what lies on disk ------------------------------------------------------------------------------


def test_two_trainings_in_one_directory_are_told_apart(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.write("step-00000001-0-gates", lambda folder: (folder / "a").write_text("first"))
    with pytest.raises(dc.CheckpointError, match="another training writes to the same directory"):
        checkpoints.write("step-00000001-0-gates", lambda folder: (folder / "a").write_text("second"))
    assert (tmp_path / "step-00000001-0-gates" / "a").read_text() == "first"


def test_every_checkpoint_is_a_model(tmp_path: Path) -> None:
    dyn = conv_net()
    run(dyn, recipe(), tmp_path)
    loaded = dc.load(tmp_path / names(tmp_path)[-1], source=conv_source())
    assert same_state(state_of(loaded), state_of(dyn))


def test_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    kept: list[list[str]] = []

    def watch(update: Any) -> None:
        kept.append(names(tmp_path))

    how = recipe(plain(epochs=5, keep="best"))
    run(conv_net(), how, tmp_path, val_data=images(seed=2), metric=quiet, progress=watch, keep_checkpoints=2)
    assert kept[-1] == [f"step-{5 * epoch:08d}-0-plain" for epoch in (1, 3, 4)]
    assert names(tmp_path) == ["step-00000025-0-plain", "step-00000025-1-end"]


def test_no_pickle_and_nothing_left_aside(tmp_path: Path) -> None:
    (tmp_path / f"{ASIDE}step-00000002-0-plain.x").mkdir()
    run(conv_net(), two_phases(), tmp_path, checkpoint_every=2)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert not list(tmp_path.glob(f"{ASIDE}*"))


def test_history_is_written(tmp_path: Path) -> None:
    history = run(conv_net(), recipe(), tmp_path, val_data=images(seed=2))
    assert read_history(tmp_path, "test").losses == history.losses
    assert [e["validation"] for e in json.loads((tmp_path / "history.json").read_text())["epochs"]] == [
        dict(epoch.validation) for epoch in history.epochs
    ]


# -- refusals ---------------------------------------------------------------------------------------


def refused(folder: Path, dyn: dc.DynamicModel, how: Any, *texts: str, **settings: Any) -> None:
    before = state_of(dyn)
    with pytest.raises(dc.CheckpointError) as caught:
        run(dyn, how, folder, **settings)
    assert all(text in str(caught.value) for text in texts)
    assert same_state(before, state_of(dyn))


def test_another_model_or_recipe_is_refused(tmp_path: Path) -> None:
    run(conv_net(), recipe(), tmp_path)
    other = "dsnet(divisor=1, minimum=1, gate=False, ratios=[0.5])"
    refused(tmp_path, conv_net(other), recipe(), "another training", "fingerprint")
    refused(tmp_path, conv_net(), recipe(plain(epochs=3)), "phases", "'epochs': 3")
    refused(tmp_path, conv_net(), recipe(), "steps", batch_size=4)
    refused(tmp_path, conv_net(), recipe(), "seed", seed=1)


def test_a_full_directory_is_refused_without_resume(tmp_path: Path) -> None:
    run(conv_net(), recipe(), tmp_path)
    refused(tmp_path, conv_net(), recipe(), "holds checkpoints already", resume=False)


@pytest.mark.parametrize("file", ["state.json", "model.safetensors"])
def test_damage_is_named(file: str, tmp_path: Path) -> None:
    run(conv_net(), recipe(), tmp_path)
    path = tmp_path / names(tmp_path)[-1] / file
    path.write_bytes(path.read_bytes()[:40])
    refused(tmp_path, conv_net(), recipe(), file)


@pytest.mark.parametrize("file", ["optimizer.safetensors", "average.safetensors"])
def test_damage_within_a_phase_is_named(file: str, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(conv_net(), recipe(sandwich()), tmp_path, checkpoint_every=1, progress=stop_after(3))
    path = tmp_path / names(tmp_path)[-1] / file
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(dc.CheckpointError, match=file):
        run(conv_net(), recipe(sandwich()), tmp_path, checkpoint_every=1)


def test_history_may_be_deleted(uninterrupted: Any, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(conv_net(), two_phases(), tmp_path, checkpoint_every=2, progress=stop_after(9))
    (tmp_path / "history.json").unlink()
    dyn = conv_net()
    assert run(dyn, two_phases(), tmp_path, checkpoint_every=2).losses == uninterrupted[0][8:]
    assert names(tmp_path)[-1] == "step-00000020-2-end"
    assert same_state(state_of(dyn), uninterrupted[1])


def test_damaged_history_is_named(tmp_path: Path) -> None:
    run(conv_net(), recipe(), tmp_path)
    (tmp_path / "history.json").write_text("{")
    with pytest.raises(dc.CheckpointError, match=r"history\.json"):
        run(conv_net(), recipe(), tmp_path)


# -- kill -9 ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
@pytest.mark.parametrize("count", [20, pytest.param(50, marks=pytest.mark.zoo)])
def test_killed_at_any_moment(count: int, uninterrupted: Any, tmp_path: Path) -> None:
    """At random moments, in writing too: what is found is complete, and the end is that of a quiet run."""
    from tests.train_killed import train_in

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.train_killed"])
    draw = random.Random(0)
    began, whole, kills, ends, found = 0.0, 0.0, 0, 0, set[str]()
    folder = tmp_path / "whole"
    while kills < count:
        process = context.Process(target=train_in, args=(str(folder),))
        process.start()
        wait_for(folder.with_suffix(".started"))
        began = time.perf_counter()
        process.join(draw.uniform(0.0, whole) if whole else None)
        process.kill()  # it may have ended just now
        process.join()
        if process.exitcode == -signal.SIGKILL:
            kills += 1
            check_complete(folder)
            found.add(names(folder)[-1] if folder.exists() and names(folder) else "none")
        else:
            assert process.exitcode == 0
            assert read_history(folder, "test").losses == uninterrupted[0]
            ends += 1  # a folder of its own: in one that is complete there is nothing left to interrupt
            whole, folder = whole or time.perf_counter() - began, tmp_path / str(ends)
    assert len(found) > 4, "the kills did not spread over the training"
    dyn = conv_net()
    assert run(dyn, two_phases(), folder, checkpoint_every=2).losses == uninterrupted[0]
    assert same_state(state_of(dyn), uninterrupted[1])


def wait_for(file: Path) -> None:
    """Until the other process has made the file, which is then removed."""
    for _ in range(3000):
        if file.exists():
            return file.unlink()
        time.sleep(0.01)
    raise AssertionError(f"{file} never appeared")


def check_complete(folder: Path) -> None:
    """Every checkpoint that has a name holds all its files, whole."""
    for name in names(folder):
        here = folder / name
        load_model(here, conv_net())
        if name.split("-")[2:] == ["0", "supernet"]:
            load_model(here, conv_net(), averaged=True)
        load_file(here / "optimizer.safetensors")
        assert json.loads((here / "program.json").read_text())["format"] == "dyncompile"
        assert json.loads((here / "state.json").read_text())["format"] == "dyncompile-training"
