"""Checkpoints load without the source's code, from graphs as data, and these graphs call nothing else."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import dyncompile as dc
from dyncompile.checkpoint import GRAPH, PROGRAM
from dyncompile.stored.targets import decode_target
from dyncompile.weights import INDEX_SUFFIX
from tests import handmade
from tests.support import ALL, FINE, Make, same, snapshot, subject

GATED = "dsnet(divisor=1, minimum=1)"


@pytest.mark.parametrize(
    ("make", "spec"),
    [
        (handmade.resnet, GATED),
        (handmade.plain_cnn, "lcnet(channels=True)"),
        (handmade.bert_like, ALL),
        (handmade.decoder, ALL),
        (handmade.two_inputs, f"dsnet({FINE}, ratios=[0.5])"),
    ],
)
def test_loads_without_the_source(make: Make, spec: str, tmp_path: Path) -> None:
    """Everything works on what is loaded: both modes, gradients, specialization, saving again."""
    one = subject(make)
    dyn = one.dynamic(spec)
    loaded = dc.load(dc.save(dyn, tmp_path))
    assert loaded.program.fingerprint == dyn.program.fingerprint
    assert same(snapshot(dyn), snapshot(loaded))
    for policy in (dc.Full(), dc.Smallest(), dc.Sampled(3)):
        with torch.no_grad():
            expected, _ = dyn.run(*one.args, policy=policy, **one.kwargs)
            assert same(expected, loaded.run(*one.args, policy=policy, **one.kwargs)[0])
    route = {name: torch.tensor([choice.smallest]) for name, choice in dyn.choices.items()}
    kept = [{k: v for k, v in one.kwargs.items() if isinstance(v, torch.Tensor)}] * 2
    with torch.no_grad():
        both = [dc.specialize(m, route)(*one.args, **k) for m, k in zip((dyn, loaded), kept, strict=True)]
    assert same(*both)
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in dyn.parameters()]
    again = dc.load(dc.save(loaded, tmp_path / "again"))
    assert again.program.fingerprint == dyn.program.fingerprint


def test_what_is_loaded_trains_like_the_original(tmp_path: Path) -> None:
    one = subject(handmade.resnet)
    dyn = one.dynamic(ALL).train()
    loaded = dc.load(dc.save(dyn, tmp_path)).train()
    grads: list[Any] = []
    for model in (dyn, loaded):
        model.run(*one.args, policy=dc.Smallest())[0].square().mean().backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0]
    assert same(*grads)
    assert same(snapshot(dyn), snapshot(loaded))


def test_reduces_to_the_source(tmp_path: Path) -> None:
    source = handmade.resnet()[0]
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_()
    _, example = handmade.resnet()
    dyn = dc.dynamize(source, ALL, example)
    reduced = dc.reduce_to_source(dyn)
    assert list(reduced) == list(source.state_dict())
    assert same(reduced, dict(source.state_dict()))
    handmade.resnet()[0].load_state_dict(reduced, strict=True)


# -- shards -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 500, 3000])
def test_shards_in_hugging_faces_format(limit: int, tmp_path: Path) -> None:
    dyn = subject(handmade.plain_cnn).dynamic()
    dc.save(dyn, tmp_path, shard_size=limit)
    described = json.loads((tmp_path / f"model.safetensors{INDEX_SUFFIX}").read_text())
    files = {name: load_file(tmp_path / name) for name in set(described["weight_map"].values())}
    assert len(files) > 1
    for file in files.values():
        assert len(file) == 1 or sum(t.nbytes for t in file.values()) <= limit
    assert described["metadata"]["total_size"] == sum(t.nbytes for f in files.values() for t in f.values())
    assert same(snapshot(dc.load(tmp_path)), snapshot(dyn))
    dc.save(dyn, tmp_path)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [GRAPH, "model.safetensors", PROGRAM]


def test_damaged_shards_are_named(tmp_path: Path) -> None:
    dyn = subject(handmade.plain_cnn).dynamic()
    dc.save(dyn, tmp_path, shard_size=500)
    shard = next(tmp_path.glob("model-00002-*"))
    shard.unlink()
    with pytest.raises(dc.CheckpointError, match=f"{shard.name} is missing"):
        dc.load(tmp_path)
    index = tmp_path / f"model.safetensors{INDEX_SUFFIX}"
    described = json.loads(index.read_text())
    described["weight_map"]["0.weight"] = "../../elsewhere.safetensors"
    index.write_text(json.dumps(described))
    with pytest.raises(dc.CheckpointError, match="no shards beside it"):
        dc.load(tmp_path)


def test_a_limit_below_a_byte_is_refused(tmp_path: Path) -> None:
    with pytest.raises(dc.SpecError, match="at least one byte"):
        dc.save(subject(handmade.plain_cnn).dynamic(), tmp_path, shard_size=0)
    assert list(tmp_path.iterdir()) == []


# -- hostile graphs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "aten.from_file.default",
        "aten.save.default",
        "os.system",
        "aten.__class__.default",
        "aten.conv2d.__class__",
        "aten.conv2d.op",
        "prim.Print.default",
        "builtins.eval",
        "",
    ],
)
def test_targets_come_from_a_closed_list(name: str) -> None:
    with pytest.raises(ValueError, match="not among those"):
        decode_target(name)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dc.save(subject(handmade.plain_cnn).dynamic(), tmp_path_factory.mktemp("stored"))


def calls(graph: dict[str, Any]) -> list[dict[str, Any]]:
    return [node for node in graph["graphs"]["eval"] if node["op"] == "call_function"]


@pytest.mark.parametrize(
    "change",
    [
        lambda g: calls(g)[0].update(target="os.system", args=["true"]),
        lambda g: calls(g)[0].update(target="getattr", args=[{"node": "input"}, "__class__"]),
        lambda g: calls(g)[0].update(target="aten.zeros.default", args=[{"list": [1 << 40, 1 << 40]}]),
        lambda g: calls(g)[1].update(args=[{"node": "later"}]),
        lambda g: calls(g)[1].update(args=[{"dtype": "load"}]),
        lambda g: calls(g)[1].update(args=[{"module": "os"}]),
        lambda g: calls(g)[1].update(name="import os"),
        lambda g: calls(g)[1].update(name=calls(g)[0]["name"]),
        lambda g: g["graphs"]["eval"].pop(),
        lambda g: g["graphs"].pop("train"),
        lambda g: g["graphs"]["eval"][0].update(op="call_module"),
        lambda g: g["state"].pop(),
        lambda g: g["state"][0].update(name="dyn.x"),
        lambda g: g["state"][0].update(name="a..b"),
        lambda g: g["call"].update(output={"os": []}),
        lambda g: g["call"].update(forward=[{"name": "a b", "kind": "KEYWORD_ONLY", "default": "absent"}]),
        lambda g: g.clear(),
    ],
)
def test_hostile_graphs_are_refused(stored: Path, change: Callable[[Any], object], tmp_path: Path) -> None:
    for path in stored.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    graph = json.loads((tmp_path / GRAPH).read_text())
    before = copy.deepcopy(graph)
    change(graph)
    assert graph != before
    (tmp_path / GRAPH).write_text(json.dumps(graph))
    with pytest.raises(dc.CheckpointError):
        dc.load(tmp_path)
