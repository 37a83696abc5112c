"""Foreign checkpoints: read as data, refused with a reason, fitted or explained."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import dyncompile as dc
from dyncompile.foreign import load_state, read_state_dict
from tests.tiny import Tied, conv_net


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture
def state() -> dict[str, Tensor]:
    return state_of(conv_net()[0])


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -- reading ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_plain_state_is_read(suffix: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    assert equal(read_state_dict(path), state)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict", None])
def test_wrappers_are_taken_off(
    wrapper: str | None, prefix: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    named = {prefix + name: value for name, value in state.items()}
    torch.save({wrapper: named, "epoch": 7} if wrapper else named, tmp_path / "w.pth")
    assert equal(read_state_dict(tmp_path / "w.pth"), state)


class Attack:
    """Unpickling this creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickle_that_calls_something_is_refused_and_not_run(legacy: bool, tmp_path: Path) -> None:
    path, proof = tmp_path / "evil.pt", tmp_path / "owned"
    if legacy:
        path.write_bytes(pickle.dumps({"w": Attack(proof)}, protocol=2))
    else:
        torch.save({"w": torch.zeros(1), "x": Attack(proof)}, path)
    with pytest.raises(dc.CheckpointError, match=r"system; it was not called"):
        read_state_dict(path)
    assert not proof.exists()


def test_environment_cannot_switch_the_safety_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"x": Attack(tmp_path / "owned")}, tmp_path / "evil.pt")
    with pytest.raises(dc.CheckpointError):
        read_state_dict(tmp_path / "evil.pt")
    assert not (tmp_path / "owned").exists()


def test_whole_model_is_refused_without_advice_to_trust_it(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(dc.CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear") as caught:
        read_state_dict(tmp_path / "model.pt")
    assert "weights_only" not in str(caught.value)
    assert "state_dict" in str(caught.value)


@pytest.mark.parametrize("name", ["junk.pt", "junk.safetensors", "empty.pth", "empty.safetensors"])
def test_damaged_files_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"" if "empty" in name else b"\x00junk" * 100)
    with pytest.raises(dc.CheckpointError, match="cannot be read"):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([torch.zeros(1)], "holds a list"),
        ({}, "no tensor"),
        ({"w": torch.zeros(1), "lr": 0.1}, "lr: float"),
        ({3: torch.zeros(1)}, "3: Tensor"),
        ({"w": torch.zeros(2, 2).to_sparse()}, "w: Tensor"),
        ({"model": {"w": torch.zeros(1)}, "state_dict": {"w": torch.ones(1)}}, "several state_dicts"),
    ],
)
def test_other_contents_are_refused(content: Any, reason: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(dc.CheckpointError, match=reason):
        read_state_dict(tmp_path / "x.pt")


@pytest.mark.parametrize(("name", "reason"), [("w.h5", r"\.safetensors"), ("missing.pt", "no such file")])
def test_other_files_are_refused(name: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "w.h5").touch()
    with pytest.raises(dc.CheckpointError, match=reason):
        read_state_dict(tmp_path / name)


# -- fitting ----------------------------------------------------------------------------------------


def test_values_arrive(state: dict[str, Tensor]) -> None:
    model = conv_net()[0]
    load_state(model, state)
    assert equal(state_of(model), state)


def test_every_mismatch_is_named_with_the_nearest_name(state: dict[str, Tensor]) -> None:
    model = conv_net()[0]
    before = state_of(model)
    state["0.conv.weight"] = state.pop("0.0.weight")
    state["2.2.bias"] = torch.zeros(7)
    state["1.0.bias"] = state["1.0.bias"].long()
    with pytest.raises(dc.CheckpointError) as caught:
        load_state(model, state)
    for text in (
        "missing: 0.0.weight (the file has 0.conv.weight)",
        "unexpected: 0.conv.weight (the model wants 0.0.weight)",
        "shape: 2.2.bias is [7] in the file, [5] in the model",
        "numbers: 1.0.bias is torch.int64 in the file, torch.float32 in the model",
    ):
        assert text in str(caught.value)
    assert equal(state_of(model), before)


def test_long_lists_are_cut() -> None:
    model = nn.ModuleList(nn.Linear(1, 1) for _ in range(40))
    with pytest.raises(dc.CheckpointError) as caught:
        load_state(model, {"other": torch.zeros(1)})
    assert "missing: and 70 more" in str(caught.value)
    assert len(str(caught.value).splitlines()) < 20


def test_half_precision_is_widened(state: dict[str, Tensor]) -> None:
    model = conv_net()[0]
    load_state(model, {name: v.half() if v.is_floating_point() else v for name, v in state.items()})
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_tied_name_may_be_left_out() -> None:
    model, values = Tied(), torch.randn(8, 8)
    load_state(model, {"first.weight": values})
    assert model.first.weight is model.second.weight
    assert torch.equal(model.second.weight, values)


def test_counters_of_old_batch_norms_may_be_left_out(state: dict[str, Tensor]) -> None:
    load_state(conv_net()[0], {name: v for name, v in state.items() if "num_batches" not in name})


class Wrapped(nn.Module):
    """Its one attribute has the name that DataParallel's has."""

    def __init__(self) -> None:
        super().__init__()
        self.module = conv_net()[0]


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "net."])
def test_attribute_with_a_wrappers_name_is_kept(prefix: str, tmp_path: Path) -> None:
    state, model = state_of(Wrapped()), Wrapped()
    assert not equal(state_of(model), state)
    torch.save({prefix + name: value for name, value in state.items()}, tmp_path / "w.pth")
    load_state(model, read_state_dict(tmp_path / "w.pth"))
    assert equal(state_of(model), state)


class Positions(nn.Linear):
    """Holds a buffer that it makes itself, as Hugging Face's embeddings do; older releases stored it."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.register_buffer("position_ids", torch.arange(4), persistent=False)


def test_buffers_that_a_model_makes_itself_may_be_given_as_they_are() -> None:
    model, weights = Positions(), {"weight": torch.ones(2, 2), "bias": torch.zeros(2)}
    load_state(model, {**weights, "position_ids": torch.arange(4)})
    assert torch.equal(model.weight, weights["weight"])
    with pytest.raises(dc.CheckpointError, match="unexpected: position_ids"):
        load_state(model, {**weights, "position_ids": torch.arange(1, 5)})


class Grown:
    """Unpickling this takes as much memory as it says."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (1 << 40,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_number_cannot_ask_for_memory(legacy: bool, tmp_path: Path) -> None:
    """Torch's reader makes bytearrays of any length from a few bytes."""
    state = {"w": torch.zeros(1), "x": Grown()}
    torch.save(state, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(dc.CheckpointError, match="bytearray, whose size nothing bounds"):
        read_state_dict(tmp_path / "w.pt")


def test_lightning_checkpoints_are_read(state: dict[str, Tensor], tmp_path: Path) -> None:
    """As `Trainer.save_checkpoint` writes them: the module's attribute before every name, and more."""
    torch.save(
        {
            "epoch": 3,
            "global_step": 96,
            "pytorch-lightning_version": "2.6.0",
            "state_dict": {f"net.{name}": value for name, value in state.items()},
            "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 3}}}},
            "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
            "optimizer_states": [
                {"state": {0: {"step": torch.tensor(96.0)}}, "param_groups": [{"lr": 1e-3}]}
            ],
            "lr_schedulers": [],
            "hyper_parameters": {"width": 16},
        },
        tmp_path / "last.ckpt",
    )
    model = conv_net()[0]
    load_state(model, read_state_dict(tmp_path / "last.ckpt"))
    assert equal(state_of(model), state)
