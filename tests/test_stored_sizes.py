"""Checkpoints of networks at several sizes of an input load without the source's code, like all others."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import dyncompile as dc
from dyncompile.checkpoint import CONSTANTS, GRAPH, PROGRAM
from dyncompile.pipeline import apply_passes
from dyncompile.policies import Learned
from dyncompile.runtime.model import DynamicModel
from dyncompile.spec import parse_spec
from tests.support import same, snapshot
from tests.test_resolution import Flat, diverged, images, made, one_hot, source

HALF = "resolution(sizes=(0.5,), predictor=linear)"
COMPOSED = (
    ("resolution",),
    ("resolution(predictor=none)", "dsnet(divisor=1, minimum=1, ratios=(0.5, 1.0), gate=False)"),
    ("dsnet(divisor=1, minimum=1, ratios=(0.5, 1.0))", HALF, "lcnet(channels=False)"),
    (HALF, "lcnet(channels=True, bits=True)"),
    (HALF, "basisnet"),
    (HALF, "routing(candidates=('identity', 'lowrank'))"),
    ("exits", HALF),
)


def load(folder: Path) -> DynamicModel:
    """The model of a folder; whoever captures the source or builds it by name fails."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the source is not at hand")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dyncompile.checkpoint.capture", refuse)
        patch.setattr("dyncompile.capture.again.captured", refuse)
        patch.setattr("dyncompile.zoo.load", refuse)
        return dc.load(folder)


def stored(dyn: DynamicModel, folder: Path) -> DynamicModel:
    return load(dc.save(dyn, folder))


@pytest.mark.parametrize("specs", COMPOSED, ids=" | ".join)
def test_every_size_is_what_it_was(specs: tuple[str, ...], tmp_path: Path) -> None:
    """Values, routes, costs, static networks, deployed ones, and what is saved again."""
    dyn, x = diverged(made(*specs)), images(6)
    loaded = stored(dyn, tmp_path)
    assert loaded.history == dyn.history
    assert loaded.program.listing("train") == dyn.program.listing("train")
    assert same(snapshot(dyn), snapshot(loaded))
    both = (dyn, loaded)
    fast = [dc.deploy(model) for model in both]
    with torch.no_grad():
        for policy in (dc.Full(), dc.Smallest(), dc.Sampled(3, per_sample=True), Learned()):
            assert same(*(model.run(x, policy=policy) for model in both))
            assert same(*(model.run(x, policy=policy) for model in fast))
        for route in routes(dyn):
            assert torch.equal(dyn.macs(route), loaded.macs(route))
            assert same(*(dc.specialize(model, route)(x) for model in both))
    assert dyn.decision_macs == loaded.decision_macs
    again = stored(loaded, tmp_path / "again")
    assert again.program.fingerprint == dyn.program.fingerprint
    assert (tmp_path / "again" / GRAPH).read_bytes() == (tmp_path / GRAPH).read_bytes()


def routes(dyn: DynamicModel) -> Iterator[dc.Route]:
    """Every size, all else at full."""
    sizes = dyn.choices["resolution"].width
    for column in range(sizes):
        full = {name: torch.tensor([choice.full]) for name, choice in dyn.choices.items()}
        yield {**full, "resolution": one_hot([column], sizes)}


def test_what_is_loaded_trains_like_the_original(tmp_path: Path) -> None:
    dyn, x = diverged(made(HALF, "lcnet(channels=False)")), images(16)
    loaded = stored(dyn, tmp_path)
    grads: list[Any] = []
    for model in (dyn.train(), loaded.train()):
        torch.manual_seed(0)
        record = model.record(x, policy=Learned(tau=0.7))
        (record.output.square().mean() + 1e-6 * model.macs(record.route).mean()).backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert any(name.startswith("dyn.sizes.6.") for name in grads[0])
    assert any(name.startswith("dyn.gates.resolution.") for name in grads[0])
    assert list(grads[0]) == list(grads[1])
    assert same(*grads)
    assert same(snapshot(dyn), snapshot(loaded)), "statistics of every size"


def test_norms_that_are_frozen_at_one_size_stay_so(tmp_path: Path) -> None:
    dyn = diverged(made(HALF))
    for name in ("dyn.sizes.6.stem_norm.weight", "block.norm.bias"):
        dyn.get_parameter(name).requires_grad_(False)
    loaded = stored(dyn, tmp_path)
    flags = [{n: p.requires_grad for n, p in model.named_parameters()} for model in (dyn, loaded)]
    assert flags[0] == flags[1]
    assert loaded.get_parameter("dyn.sizes.6.block.norm.bias").requires_grad


class Masked(nn.Module):
    """Tied weights; a mask, a saved grid and a constant that follow the size of the map."""

    mask: Tensor
    grid: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("mask", torch.ones(12, 12), persistent=False)
        self.register_buffer("grid", torch.arange(12.0))
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu() * self.mask) + self.grid + torch.tensor([0.1 * x.shape[-1]])
        return self.head(x.mean((2, 3)))


def masked_at(net: Any, size: tuple[int, int]) -> None:
    """As libraries do: buffers of another size in place of the old ones."""
    net.mask, net.grid = torch.linspace(0, 1, size[0] * size[1]).view(size), torch.arange(size[1]) / 2


def test_what_sizes_have_for_themselves_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net, x = Masked().eval(), images(4)
    with monkeypatch.context() as patch:
        patch.setattr("dyncompile.zoo.sizes._ADAPTERS", (masked_at,))
        dyn = dc.dynamize(net, "resolution(sizes=(6, 8), predictor=linear)", x).eval()
    loaded = stored(dyn, tmp_path)
    own = {
        f"dyn.sizes.{size}.{name}" for size in (6, 8) for name in ("mask", "dyn.constants.lifted_tensor_0")
    }
    assert {name for name in load_file(tmp_path / CONSTANTS) if name.startswith("dyn.sizes.")} == own
    assert loaded.state_dict()["dyn.sizes.6.grid"].tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
    assert same(snapshot(dyn), snapshot(loaded))
    with torch.no_grad():
        outputs = [
            [one.run(x, policy=dc.Forced(one.route(column, 4)))[0] for one in (dyn, loaded)]
            for column in range(3)
        ]
    assert all(same(*both) for both in outputs)
    assert not same(outputs[0][0], outputs[1][0])
    assert same(outputs[2][1], net(x))
    assert loaded.get_parameter("first.weight") is loaded.get_parameter("second.weight")


def test_sizes_that_were_refused_are_explained_as_before(tmp_path: Path) -> None:
    dyn = dc.dynamize(Flat(), "resolution(sizes=(6, 9, 10, 14))", images(2))
    loaded = stored(dyn, tmp_path)
    reasons = [{one.name: one.reason for one in model.plans[0].rejections} for model in (dyn, loaded)]
    assert reasons[0] == reasons[1]
    assert "`head` (Linear) says" in reasons[1]["6"]


# -- what is not there ------------------------------------------------------------------------------


def edit(folder: Path, name: str, change: Callable[[Any], object]) -> None:
    found = json.loads((folder / name).read_text())
    before = copy.deepcopy(found)
    change(found)
    assert found != before
    (folder / name).write_text(json.dumps(found))


def test_a_checkpoint_of_an_earlier_release_asks_for_the_source(tmp_path: Path) -> None:
    dyn = diverged(made())
    dc.save(dyn, tmp_path)
    edit(tmp_path, GRAPH, lambda graph: graph.pop("sizes"))
    edit(tmp_path, PROGRAM, lambda program: program.pop("sizes"))
    with pytest.raises(dc.CheckpointError) as raised:
        load(tmp_path)
    assert "6: a size is captured from the network's code, which is not at hand" in str(raised.value)
    assert "keeps graphs of no other size; give the source: load(dir, source=model)" in str(raised.value)
    assert same(snapshot(dc.load(tmp_path, source())), snapshot(dyn))


def test_sizes_that_no_checkpoint_has_are_refused(tmp_path: Path) -> None:
    """Two causes, two messages: the code is not at hand, or a choice decides on sizes already."""
    static = stored(made("lcnet(channels=False)"), tmp_path / "one")
    with pytest.raises(dc.NoSiteError, match="which is not at hand; the checkpoint keeps graphs of no other"):
        apply_passes(static.program, [parse_spec(HALF)])
    for dyn in (made(), stored(made(), tmp_path / "several")):
        with pytest.raises(dc.NoSiteError, match="decides on sizes already: give all of them to that pass"):
            apply_passes(dyn.program, [parse_spec("resolution(sizes=(8,), name=again)")])


# -- damage -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dc.save(made(), tmp_path_factory.mktemp("sound"))


def first(graph: dict[str, Any]) -> dict[str, Any]:
    return graph["sizes"][0]


def calls(graph: dict[str, Any]) -> list[dict[str, Any]]:
    return [node for node in first(graph)["graphs"]["eval"] if node["op"] == "call_function"]


def norm(graph: dict[str, Any]) -> dict[str, Any]:
    return next(entry for entry in first(graph)["state"] if "held" in entry)


@pytest.mark.parametrize(
    "change",
    [
        lambda g: calls(g)[0].update(target="os.system", args=["true"]),
        lambda g: calls(g)[0].update(target="aten.zeros.default", args=[{"list": [1 << 40, 1 << 40]}]),
        lambda g: calls(g)[0].update(target="getattr", args=[{"node": "x"}, "__class__"]),
        lambda g: calls(g)[1].update(args=[{"node": "later"}]),
        lambda g: first(g)["graphs"].pop("train"),
        lambda g: first(g)["graphs"]["eval"].pop(),
        lambda g: first(g)["state"].pop(),
        lambda g: norm(g).update(held="dyn.sizes.9.nothing"),
        lambda g: norm(g).update(held="../../weights"),
        lambda g: norm(g).update(held=["a"]),
        lambda g: norm(g).update(name="a..b"),
        lambda g: norm(g).pop("trainable"),
        lambda g: first(g).update(state=7),
        lambda g: first(g).update(size=[9, 9]),
        lambda g: first(g).update(size=[8, 8]),
        lambda g: first(g).update(size=[1 << 40, 6]),
        lambda g: first(g).update(size=[6, -6]),
        lambda g: first(g).update(size=[6, True]),
        lambda g: first(g).update(size=[6]),
        lambda g: first(g).update(size="66"),
        lambda g: first(g).update(input=1),
        lambda g: first(g).update(input=-1),
        lambda g: first(g).update(input=None),
        lambda g: first(g).update(refused="no"),
        lambda g: g["sizes"].pop(),
        lambda g: g.update(sizes={"6": 1}),
        lambda g: g.update(sizes=None),
    ],
)
def test_damaged_sizes_are_refused(sound: Path, change: Callable[[Any], object], tmp_path: Path) -> None:
    for path in sound.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    edit(tmp_path, GRAPH, change)
    with pytest.raises(dc.CheckpointError):
        load(tmp_path)


@pytest.mark.parametrize("sizes", ["6", [6], [[6]], [[6, "9"]], [[6, 9, 12]], {"6": 6}, None])
def test_descriptions_of_sizes_that_are_none(sound: Path, sizes: Any, tmp_path: Path) -> None:
    for path in sound.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    edit(tmp_path, PROGRAM, lambda program: program.update(sizes=sizes))
    with pytest.raises(dc.CheckpointError, match="garbles"):
        load(tmp_path)


def test_damage_names_the_size(sound: Path, tmp_path: Path) -> None:
    for path in sound.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    edit(tmp_path, GRAPH, lambda graph: calls(graph)[0].update(target="os.system"))
    with pytest.raises(dc.CheckpointError, match=r"of size 6 is damaged: ValueError: operator 'os\.system'"):
        load(tmp_path)
