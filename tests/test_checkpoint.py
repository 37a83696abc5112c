"""Checkpoints round trip; damaged, foreign and hostile ones are refused, and nothing that they say is run."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import dyncompile as dc
from dyncompile.checkpoint import load_weights
from dyncompile.stored.description import GRAPH, PROGRAM, WEIGHTS
from tests import handmade
from tests.support import ALL, FINE, Make, same, snapshot, subject

TINY = "timm:test_resnet?num_classes=5"


def trained(make: Make, spec: str = ALL) -> dc.DynamicModel:
    """A dynamic model whose weights and statistics are no longer the source's."""
    dyn = subject(make).dynamic(spec).train()
    one = subject(make)
    with torch.no_grad():
        for parameter in dyn.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for policy in (dc.Full(), dc.Smallest()):
            dyn.run(*one.args, policy=policy, **one.kwargs)
    return dyn.eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model that tests may damage."""
    return dc.save(trained(handmade.plain_cnn), tmp_path / "model")


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the description in place."""
    described = json.loads((folder / PROGRAM).read_text())
    change(described)
    (folder / PROGRAM).write_text(json.dumps(described))


def refused(folder: Path, *texts: str, source: nn.Module | None = None) -> None:
    """Loading raises CheckpointError with these texts."""
    model = source or subject(handmade.plain_cnn).module
    before = snapshot(model)
    with pytest.raises(dc.CheckpointError) as caught:
        dc.load(folder, source=model)
    for text in texts:
        assert text in str(caught.value)
    assert same(before, snapshot(model))


# -- round trips ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "spec"),
    [
        (handmade.resnet, f"dsnet({FINE}, per=stage)"),
        (handmade.dense, f"dsnet({FINE}, per=dim)"),
        (handmade.vit, f"dsnet({FINE}, embedding=True)"),
        (handmade.bert_like, ALL),
        (handmade.decoder, ALL),
        (handmade.two_inputs, f"dsnet({FINE}, ratios=[0.5])"),
    ],
)
def test_round_trip(make: Make, spec: str, tmp_path: Path) -> None:
    dyn, one = trained(make, spec), subject(make)
    fresh, _ = make()
    assert dc.save(dyn, tmp_path) == tmp_path
    loaded = dc.load(tmp_path, source=fresh)
    assert not loaded.training
    assert loaded.history == dyn.history
    assert loaded.program.fingerprint == dyn.program.fingerprint
    assert same(snapshot(dyn), snapshot(loaded))
    with torch.no_grad():
        for policy in (dc.Full(), dc.Smallest(), dc.Sampled(1)):
            expected, _ = dyn.run(*one.args, policy=policy, **one.kwargs)
            assert same(expected, loaded.run(*one.args, policy=policy, **one.kwargs)[0])


def test_tensors_lie_where_torch_would_have_put_them(folder: Path) -> None:
    """Elsewhere kernels take another way, with other last bits."""
    loaded = dc.load(folder, source=subject(handmade.plain_cnn).module)
    saved = load_file(folder / WEIGHTS)
    assert any(tensor.data_ptr() % 64 for tensor in saved.values()), "a file that does not tell"
    tensors = (*loaded.parameters(), *loaded.buffers())
    assert all(tensor.data_ptr() % 64 == 0 for tensor in tensors)


def test_two_passes_round_trip(tmp_path: Path) -> None:
    specs = [f"dsnet({FINE}, include=stage1)", f"dsnet({FINE}, name=rest)"]
    dyn = subject(handmade.resnet).dynamic(specs)
    loaded = dc.load(dc.save(dyn, tmp_path), source=handmade.resnet()[0])
    assert list(loaded.choices) == ["width", "rest"]
    assert same(snapshot(dyn), snapshot(loaded))


def tied() -> tuple[nn.Module, Tensor]:
    embed, head = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
    head.weight = embed.weight
    return nn.Sequential(embed, nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 6), head), torch.randint(9, (2, 3))


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    dyn = trained(tied)
    dc.save(dyn, tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    assert len({"0.weight", "4.weight"} & set(stored)) == 1
    loaded = dc.load(tmp_path, source=tied()[0])
    parameters = dict(loaded.named_parameters(remove_duplicate=False))
    assert parameters["0.weight"] is parameters["4.weight"]
    assert same(snapshot(dyn), snapshot(loaded))


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, more: Any, times: int = 1, name: str | None = None) -> Tensor:
        y = self.second(self.first(x).relu()) * times
        return y + sum(more["list"]) + more["tuple"][0]


def test_arguments_of_every_form(tmp_path: Path) -> None:
    """Constants and containers are described, and described arguments capture the same program."""
    more = {
        "list": [torch.randn(2, 3), torch.randn(2, 1)],
        "tuple": (torch.randn(2, 3, dtype=torch.float64),),
    }
    module = Nested().eval()
    dyn = dc.dynamize(module, ALL, {"x": torch.randn(2, 4), "more": more, "times": 3, "name": None})
    described = json.loads((dc.save(dyn, tmp_path) / PROGRAM).read_text())["inputs"]
    assert described["x"] == {"tensor": {"shape": [None, 4], "dtype": "float32"}}
    assert described["times"] == {"constant": 3}
    assert described["name"] == {"constant": None}
    assert described["more"]["dict"]["tuple"] == {
        "tuple": [{"tensor": {"shape": [None, 3], "dtype": "float64"}}]
    }
    x, loaded = torch.randn(5, 4), dc.load(tmp_path, source=module)
    assert torch.equal(dyn(x[:2], more, 3, None), loaded(x[:2], more, 3, None))


def test_the_source_can_be_named(tmp_path: Path) -> None:
    from dyncompile import zoo

    source = zoo.load(TINY)
    dyn = dc.dynamize(source.model.eval(), "dsnet", source.args).eval()
    loaded = dc.load(dc.save(dyn, tmp_path, source=TINY))
    with torch.no_grad():
        x = source.args[0]
        assert torch.equal(dyn.run(x, policy=dc.Smallest())[0], loaded.run(x, policy=dc.Smallest())[0])


# -- writing ----------------------------------------------------------------------------------------


def test_other_files_stay_and_saving_again_replaces(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    (folder / "sub").mkdir()
    dyn = trained(handmade.plain_cnn, f"dsnet({FINE}, per=dim)")
    dc.save(dyn, folder)
    assert sorted(path.name for path in folder.iterdir()) == [GRAPH, WEIGHTS, "notes.txt", PROGRAM, "sub"]
    assert same(snapshot(dyn), snapshot(dc.load(folder, source=handmade.plain_cnn()[0])))


def test_weights_of_other_models_are_not_replaced(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "config.json"):
        (other / name).write_bytes((folder / WEIGHTS).read_bytes())
    before = {path.name: path.read_bytes() for path in other.iterdir()}
    dyn = trained(handmade.plain_cnn)
    with pytest.raises(dc.CheckpointError, match="other files: model-00001-of-00002"):
        dyn.save_pretrained(other)
    assert {path.name: path.read_bytes() for path in other.iterdir()} == before


def test_what_is_compiled_is_saved_and_what_is_deployed_is_refused(tmp_path: Path) -> None:
    dyn = trained(handmade.plain_cnn)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing the compiler warns of what it uses itself
        compiled: Any = torch.compile(dyn)
    assert same(snapshot(dyn), snapshot(dc.load(dc.save(compiled, tmp_path))))
    for refused in (dc.deploy(dyn), nn.Linear(2, 2)):
        with pytest.raises(dc.SpecError, match=r"deployed model|no dynamic model"):
            dc.save(cast(Any, refused), tmp_path)
        with pytest.raises(dc.SpecError, match=r"deployed model|no dynamic model"):
            dc.reduce_to_source(cast(Any, refused))
    assert same(snapshot(dyn), snapshot(dc.load(tmp_path)))


def test_buffers_within_buffers(tmp_path: Path) -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            table = torch.randn(6, 4)
            self.layer = nn.Linear(4, 4)
            self.register_buffer("table", table)
            self.register_buffer("first", table[0])

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + self.get_buffer("table").sum(0) + self.get_buffer("first")

    dyn = dc.dynamize(Views(), "dsnet(divisor=1, minimum=1, gate=False)", torch.randn(2, 4))
    assert same(snapshot(dyn), snapshot(dc.load(dc.save(dyn, tmp_path))))


def test_what_is_replaced_while_it_is_read_is_read_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = trained(handmade.plain_cnn, f"dsnet({FINE}, per=dim)")
    saves = [2]

    def meanwhile(*given: Any) -> None:
        if saves[0]:
            saves[0] -= 1
            dc.save(new, folder)
        load_weights(*given)

    monkeypatch.setattr("dyncompile.checkpoint.load_weights", meanwhile)
    assert same(snapshot(dc.load(folder)), snapshot(new))
    saves[0] = 100
    with pytest.raises(dc.CheckpointError, match="all the time"):
        dc.load(folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("make", [handmade.resnet, handmade.vit])
def test_a_model_that_was_cast(make: Make, dtype: torch.dtype, tmp_path: Path) -> None:
    spec = f"dsnet({FINE})"
    dyn = copy.deepcopy(trained(make, spec)).to(dtype)
    dc.save(copy.deepcopy(dyn), tmp_path)
    x = subject(make).args[0].to(dtype)
    for source in (None, make()[0]):
        loaded = dc.load(tmp_path, source=source)
        assert same(snapshot(dyn), snapshot(loaded))
        with torch.no_grad():
            for policy in (dc.Full(), dc.Sampled(1)):
                assert same(dyn.run(x, policy=policy)[0], loaded.run(x, policy=policy)[0])
        again = dc.load(dc.save(loaded, tmp_path / "again"))
        assert same(snapshot(dyn), snapshot(again))


@pytest.mark.parametrize("call", range(14))
def test_a_failure_anywhere_leaves_the_old_or_the_new(
    folder: Path, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever step of writing fails is the last one, as if the process had been killed there."""
    old, new = trained(handmade.plain_cnn), trained(handmade.plain_cnn, f"dsnet({FINE}, per=dim)")
    dc.save(old, folder)
    steps = [0]

    def dying(step: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            steps[0] += 1
            if steps[0] > call:
                raise Killed
            return step(*given, **named)

        return run

    for name in ("replace", "rename", "fsync", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, dying(getattr(os, name)))
    with contextlib.suppress(Killed):
        dc.save(new, folder, shard_size=1500)
    monkeypatch.undo()
    loaded = dc.load(folder, source=handmade.plain_cnn()[0])
    assert any(same(snapshot(loaded), snapshot(one)) for one in (old, new) if one.history == loaded.history)
    dc.save(new, folder)
    assert sorted(path.name for path in folder.iterdir()) == [GRAPH, WEIGHTS, PROGRAM]
    assert same(snapshot(dc.load(folder)), snapshot(new))


class Killed(BaseException):
    """The end of a process, as far as a test can play it."""


def test_a_place_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        dc.save(subject(handmade.plain_cnn).dynamic(), tmp_path / "file")


# -- what is damaged or foreign ---------------------------------------------------------------------


def test_missing_files(folder: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "program.json is missing", "give the directory that dyncompile.save wrote")
    (folder / WEIGHTS).unlink()
    refused(folder, "model.safetensors is missing")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("name", [WEIGHTS, PROGRAM])
def test_truncated_files(folder: Path, name: str, share: float) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(len(content) * share)])
    refused(folder, name)


def test_flipped_bits_in_the_header_of_the_weights(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    for at in (0, 7, 9, 20, 40):
        damaged = bytearray(content)
        damaged[at] ^= 0x41
        (folder / WEIGHTS).write_bytes(bytes(damaged))
        refused(folder, WEIGHTS)


def test_a_pickle_in_place_of_the_weights(folder: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, folder / WEIGHTS)
    refused(folder, "is damaged")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.pop("3.0.0.weight"), "missing: 3.0.0.weight [8, 8, 3, 3]"),
        (lambda t: t.update(extra=torch.zeros(2)), "unexpected: extra [2]"),
        (
            lambda t: t.update({"4.2.bias": torch.zeros(6)}),
            "shape of 4.2.bias: [6] in the file, [5] in the model",
        ),
        (lambda t: t.pop("dyn.statistics.width.0.0.1.running_mean"), "missing: dyn.statistics.width.0.0.1"),
    ],
)
def test_keys_that_do_not_fit(folder: Path, change: Callable[[dict[str, Tensor]], object], text: str) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    refused(folder, "does not fit the model (1)", text)


def test_all_misfits_are_named_at_once(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["3.0.0.weight"], tensors["4.2.bias"]
    save_file({**tensors, "a": torch.zeros(1), "b": torch.zeros(1)}, folder / WEIGHTS)
    refused(folder, "(4)", "missing: 3.0.0.weight", "missing: 4.2.bias", "unexpected: a", "unexpected: b")


def test_another_network(folder: Path) -> None:
    other = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.Flatten(), nn.Linear(128, 5))
    refused(folder, "gives another program", "give the network", source=other)
    wider, _ = handmade.resnet()
    refused(folder, source=wider)


def test_a_source_that_does_not_take_the_inputs(folder: Path) -> None:
    refused(folder, "cannot be replayed on this source", source=nn.Linear(7, 3))
    refused(folder, "cannot be replayed on this source", source=handmade.two_inputs()[0])


def test_a_model_without_a_named_source_or_a_graph_asks_for_it(folder: Path) -> None:
    edit(folder, lambda d: d.update(graph=None))
    with pytest.raises(dc.CheckpointError, match="does not say how its source is built"):
        dc.load(folder)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d.update(format="other"), "does not describe a dyncompile model"),
        (lambda d: d.update(version=99), "has format version 99, this release reads up to 3"),
        (lambda d: d.update(version="1"), "has format version '1'"),
        (lambda d: d.pop("history"), "lacks or garbles entries (1):\n  - history"),
        (lambda d: d.update(history={}, fingerprint=7), "lacks or garbles entries (2)"),
        (lambda d: d.update(fingerprint="0" * 64), "gives another program"),
        (lambda d: d.update(history=[]), "gives another program"),
        (lambda d: d.update(history=["dsnet(ratios=[2.0])"]), "ratios must lie in (0, 1]"),
        (lambda d: d.update(history=["nothing"]), "there is no method 'nothing'"),
        (lambda d: d.update(history=[7, None]), "cannot be replayed"),
    ],
)
def test_descriptions_that_do_not_fit(
    folder: Path, change: Callable[[dict[str, Any]], object], text: str
) -> None:
    edit(folder, change)
    refused(folder, text)


@pytest.mark.parametrize(
    "text", ["[1, 2]", "7", "null", '"dyncompile"', "[" * 100_000, "{" * 50, "\udcff", "NaN"]
)
def test_descriptions_that_are_no_description(folder: Path, text: str) -> None:
    (folder / PROGRAM).write_bytes(text.encode(errors="surrogateescape"))
    refused(folder, PROGRAM)


# -- what is hostile --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source", ["os:system", "tests.handmade:plain_cnn", "subprocess:run", "builtins:exec"]
)
def test_files_do_not_choose_code_to_run(folder: Path, source: str) -> None:
    edit(folder, lambda d: d.update(source=source, graph=None))
    with pytest.raises(dc.CheckpointError, match="files may not choose code to run"):
        dc.load(folder)


HOSTILE_MODULE = "antigravity_for_tests"
ENUM = {"__enum__": True, "fqn": f"{HOSTILE_MODULE}:thing", "name": "x"}
CONTEXT = {"default_factory_module": HOSTILE_MODULE, "default_factory_name": "x"}
SPEC = [1, {"type": "collections.defaultdict", "context": json.dumps(CONTEXT), "children_spec": []}]


@pytest.mark.parametrize(
    "inputs",
    [
        {"structure": json.dumps(SPEC), "leaves": []},
        {"input": ENUM},
        {"input": {"dict": ENUM}},
        {"input": {"constant": ENUM}},
        {"input": {"defaultdict": {"default_factory_module": HOSTILE_MODULE}}},
        {"input": {HOSTILE_MODULE: []}},
        {"input": {"tensor": {"shape": [2], "dtype": "nn"}}},
        {"input": {"tensor": {"shape": [2], "dtype": "load"}}},
        {"input": {"tensor": {"shape": [1 << 40, 3], "dtype": "float32"}}},
        {"input": {"tensor": {"shape": [-1, 3, 8, 8], "dtype": "float32"}}},
        {"input": {"tensor": {"shape": [2.5, 3, 8, 8], "dtype": "float32"}}},
        {"input": {"tensor": {"shape": [True, 3, 8, 8], "dtype": "float32"}}},
        {"input": {"tensor": {"shape": "abc", "dtype": "float32"}}},
        {"input": {"tensor": [[2], "float32"]}},
        {"input": {"tensor": {"shape": [None, 3, 8, 8]}}},
        {"input": {"list": 7}},
        {"input": {"constant": 1, "list": []}},
        {"input": []},
        {"input": None},
        {"stranger": {"constant": 1}},
        {},
    ],
)
def test_hostile_or_absurd_inputs(
    folder: Path, inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of them imports a module, allocates what it asks for, or ends in another error."""
    (tmp_path / f"{HOSTILE_MODULE}.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    edit(folder, lambda d: d.update(inputs=inputs))
    refused(folder)
    assert HOSTILE_MODULE not in sys.modules


def test_sizes_in_a_file_take_no_memory(folder: Path) -> None:
    """A tensor of 2^57 numbers is described; it is never made."""
    huge = {"tensor": {"shape": [(1 << 20) - 1, 3, (1 << 19), (1 << 17)], "dtype": "float32"}}
    edit(folder, lambda d: d.update(inputs={"input": huge}))
    refused(folder, "gives another program")


@pytest.mark.parametrize(
    "spec",
    [
        "dsnet(name=__import__('os').system('true'))",
        "(" * 10_000,
        "-" * 10_000 + "1",
        "dsnet(name='\0')",
        "os.system",
    ],
)
def test_specs_in_a_file_are_literals(folder: Path, spec: str) -> None:
    edit(folder, lambda d: d.update(history=[spec]))
    refused(folder, "cannot be replayed")


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Pairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, pair: Pair) -> Tensor:
        return self.second(self.first(pair.first).relu()) + pair.second


def test_arguments_that_a_checkpoint_cannot_describe(tmp_path: Path) -> None:
    dyn = dc.dynamize(Pairs(), ALL, (Pair(torch.randn(2, 4), torch.randn(2, 3)),))
    with pytest.raises(dc.CheckpointError, match="an argument of the model holds a Pair, which a checkpoint"):
        dc.save(dyn, tmp_path)
    assert list(tmp_path.iterdir()) == []
