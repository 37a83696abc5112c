"""Exported programs: what the model gives for one sample, its decisions, and nothing run that is dropped."""

from __future__ import annotations

import copy
import hashlib
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

import dyncompile as dc
from dyncompile.deploy.exports import samples, static
from dyncompile.deploy.exports.program import OneSample, one_sample
from dyncompile.errors import ContractError, DyncompileError, InputError, SpecError
from dyncompile.program import Domain
from dyncompile.runtime.model import DynamicModel
from tests import handmade
from tests.support import Make, leaves, relative, subject
from tests.tiny import conv_net

FINE = "divisor=1, minimum=1"
CASES = (
    (handmade.resnet, f"dsnet({FINE}, ratios=(0.5, 1.0), depth=(0.5, 1.0))"),
    (handmade.resnet, f"dsnet({FINE}, ratios=(0.3, 0.6, 1.0), per=block)"),
    (handmade.depthwise_se, f"dsnet({FINE}, per=stage, attention=True)"),
    (handmade.dense, f"dsnet({FINE}, per=block)"),
    (handmade.vit, f"dsnet({FINE}, per=block)"),
    (handmade.bert_like, f"dsnet({FINE}, per=block)"),
    (handmade.bert_like, "dsnet(ratios=(1, 1), depth=(0.5, 1))"),
    (handmade.resnet, "lcnet"),
    (handmade.resnet, "lcnet(bits=True, channels=False)"),
    (handmade.vit, "lcnet"),
    (handmade.bert_like, "lcnet"),
    (handmade.decoder, "lcnet(channels=False)"),
    (handmade.resnet, "routing"),
    (handmade.vit, "routing"),
    (handmade.resnet, "resolution"),
    (handmade.plain_cnn, "basisnet"),
    (handmade.resnet, "exits"),
    (handmade.vit, "exits"),
    (handmade.resnet, f"lcnet(channels=False); exits; dsnet({FINE}, ratios=(0.5, 1.0), per=stage)"),
    (handmade.resnet, "resolution; lcnet(channels=False)"),
    (handmade.vit, f"dsnet({FINE}, ratios=(0.3, 0.6, 1.0)); lcnet(channels=False)"),
)
ROWS = 4


def batch(make: Make) -> list[Any]:
    """Flat inputs of four different samples."""
    found = subject(make)
    random = torch.Generator().manual_seed(1)

    def more(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() == 0:
            return value
        if not value.is_floating_point():
            return torch.cat([value.roll(i, -1) for i in range(ROWS)])[:ROWS]
        scales = torch.tensor([0.5, 1.0, 2.0, 3.0]).view(-1, *[1] * (value.dim() - 1))
        return torch.randn(ROWS, *value.shape[1:], generator=random) * scales

    return [more(value) for value in found.flat]


@torch.no_grad()
def restless(dyn: DynamicModel, flat: list[Any]) -> DynamicModel:
    """The model with decision nets that decide differently for different samples."""
    random = torch.Generator().manual_seed(0)
    named = dict(dyn.named_parameters())
    for name, parameter in named.items():
        if name.startswith("dyn."):
            scale = 0.1 if name.startswith("dyn.heads.") else 0.5  # large logits are all equally confident
            parameter.add_(scale * torch.randn(parameter.shape, generator=random))
    for name in dyn.gated:  # in order: later features depend on earlier decisions
        logits = dyn.execute(flat, ROWS, dc.Learned(), "sparse").logits[name]
        logits = logits[~logits.isnan().any(1)]
        domain = dyn.choices[name].domain
        if domain is Domain.EXIT and len(logits):
            dyn.get_buffer(f"dyn.exits.{name}.threshold").add_(logits.median() + 1e-3)
        elif domain is not Domain.MIXTURE and f"dyn.gates.{name}.head.bias" in named:
            middle = logits.mean(0) if domain is Domain.ONE_HOT else logits.median(0).values - 0.1
            named[f"dyn.gates.{name}.head.bias"].sub_(middle)
    return dyn


def made(make: Make, method: str) -> tuple[DynamicModel, list[Any]]:
    flat = batch(make)
    return restless(subject(make).dynamic(method.split("; ")), flat), flat


def conditions(module: fx.GraphModule) -> int:
    """Conditions in a graph and in their sides."""
    own = sum(node.target is torch.ops.higher_order.cond for node in module.graph.nodes)
    return own + sum(conditions(child) for child in module.children() if isinstance(child, fx.GraphModule))


def by_row(dyn: DynamicModel, flat: list[Any]) -> Iterator[tuple[list[Any], dict[str, Any], Any]]:
    """(flat inputs, arguments by name, record) of every sample alone."""
    signature = dyn.program.signature
    for row in range(ROWS):
        one = samples.one_row(signature, flat, row)
        with torch.no_grad():
            record = dyn.execute(one, 1, dc.Learned(), "sparse")
        yield one, samples.named_inputs(signature, one), record


@pytest.mark.parametrize(("make", "method"), CASES)
def test_programs_give_what_models_give(make: Make, method: str) -> None:
    dyn, flat = made(make, method)
    before = {name: tensor.clone() for name, tensor in dyn.state_dict().items()}
    program = one_sample(dyn.program, dc.Learned())
    assert conditions(program.module)
    routes = set[str]()
    for _, named, record in by_row(dyn, flat):
        with torch.no_grad():
            output, route = program.module(**named)
        assert relative(leaves(record.output), leaves(output)) < 1e-5
        assert list(route) == list(dyn.choices)
        samples.check_route(dyn.choices, record.route, route)
        routes.add(str({name: (rows > 0).tolist() for name, rows in route.items()}))
    assert len(routes) > 1 or set(dyn.gated) == {"basis"}
    assert all(torch.equal(before[name], tensor) for name, tensor in dyn.state_dict().items())


@torch.no_grad()
def test_what_is_dropped_does_not_run() -> None:
    dyn, flat = made(handmade.resnet, "lcnet(channels=False)")
    program = one_sample(dyn.program, dc.Learned())
    skipped = 0
    for _, named, record in by_row(dyn, flat):
        off = [name for name, rows in record.route.items() if not rows.any()]
        poisoned = {name.removeprefix("layer.") for name in off}
        state = {n: t.clone() for n, t in program.module.state_dict().items()}
        for name, tensor in program.module.named_parameters():
            if any(name.startswith(f"{module}.conv2") for module in poisoned):
                tensor.fill_(torch.nan)  # times a gain of 0 it would still be no number
                skipped += 1
        assert leaves(program.module(**named)[0])[0].isfinite().all()
        program.module.load_state_dict(state)
    assert skipped


def test_sides_do_not_multiply_with_decisions() -> None:
    """Blocks decide on their own: one side per column and block, not one per combination."""
    sides = [
        conditions(one_sample(made(handmade.vit, method)[0].program, dc.Learned()).module)
        for method in (f"dsnet({FINE}, ratios=(0.5, 1.0), per={per})" for per in ("model", "block"))
    ]
    assert sides[1] == len(made(handmade.vit, f"dsnet({FINE}, per=block)")[0].gated) * sides[0]


# -- files --------------------------------------------------------------------------------------------


def onnx_session(path: Path) -> Any:
    return importlib.import_module("onnxruntime").InferenceSession(path)


def operators(graph: Any) -> Iterator[Any]:
    """Nodes of an ONNX graph and of the graphs in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from operators(attribute.g)


def check_onnx(dyn: DynamicModel, flat: list[Any], path: Path) -> None:
    """The file has conditions, no operators of its own, and gives outputs and decisions by name."""
    written = dc.export(dyn, path, inputs=given(dyn, flat))
    assert written.bytes == path.stat().st_size
    model = importlib.import_module("onnx").load(path)
    nodes = list(operators(model.graph))
    assert any(node.op_type == "If" for node in nodes)
    assert {node.domain for node in nodes} <= {"", "ai.onnx"}
    assert not model.functions
    session = onnx_session(path)
    names = [one.name for one in session.get_outputs()]
    assert names[-len(dyn.choices) :] == [f"route.{name}" for name in dyn.choices]
    for one, _, record in by_row(dyn, flat):
        feed = [value.numpy() for value in samples.tensors_of(dyn.program.signature, one)]
        taken = [entry.name for entry in session.get_inputs()]
        found = session.run(None, dict(zip(taken, feed, strict=True)))
        outputs = len(names) - len(dyn.choices)
        assert relative(leaves(record.output), [torch.as_tensor(x) for x in found[:outputs]]) < 1e-4
        route = {name: torch.as_tensor(x) for name, x in zip(dyn.choices, found[outputs:], strict=True)}
        samples.check_route(dyn.choices, record.route, route)


def check_pt2(dyn: DynamicModel, flat: list[Any], path: Path) -> None:
    dc.export(dyn, path, "pt2", inputs=given(dyn, flat))
    module = torch.export.load(path).module()
    for _, named, record in by_row(dyn, flat):
        with torch.no_grad():
            output, route = module(*named.values())
        assert relative(leaves(record.output), leaves(output)) < 1e-5
        samples.check_route(dyn.choices, record.route, route)


def given(dyn: DynamicModel, flat: list[Any]) -> Any:
    """Flat inputs as `export` takes them."""
    return dict(pytree.tree_unflatten(flat, dyn.program.signature.structure))


def test_onnx(tmp_path: Path) -> None:
    check_onnx(*made(handmade.plain_cnn, f"dsnet({FINE}, ratios=(0.5, 1.0)); exits"), tmp_path / "x.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]


def test_pt2(tmp_path: Path) -> None:
    check_pt2(*made(handmade.vit, "lcnet(channels=False)"), tmp_path / "x.pt2")


@pytest.mark.zoo
@pytest.mark.parametrize("check", [check_onnx, check_pt2])
@pytest.mark.parametrize(("make", "method"), CASES)
def test_every_method_in_both_formats(make: Make, method: str, check: Any, tmp_path: Path) -> None:
    check(*made(make, method), tmp_path / "file")


# -- bundles ------------------------------------------------------------------------------------------


def tiny(method: str) -> DynamicModel:
    module, example = conv_net()
    return dc.dynamize(module.eval(), method, example).eval()


@torch.no_grad()
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_outputs_are_compared_at_their_own_scale(scale: float) -> None:
    """Those of an untrained network may be tiny: what is absolute there lets anything pass."""
    expected = scale * torch.tensor([1.0, -2.0])
    assert samples.difference([expected], [expected * (1 + 1e-5)]) == pytest.approx(2e-5 * scale, rel=0.1)
    with pytest.raises(ContractError, match="differs by"):
        samples.difference([expected], [expected * (1 + 1e-3)])
    with pytest.raises(ContractError, match="differs by"):
        samples.difference([0 * expected], [expected])


def test_bundles_hold_a_router_and_the_network_of_every_route(tmp_path: Path) -> None:
    dyn = tiny("dsnet(ratios=(0.5, 1.0))")
    flat = [torch.randn(ROWS, 3, 8, 8) * torch.tensor([0.2, 1.0, 3.0, 9.0]).view(-1, 1, 1, 1)]
    restless(dyn, flat)
    folder = tmp_path / "served"
    dc.export(dyn, folder, "bundle", inputs=flat[0])
    manifest = json.loads((folder / "manifest.json").read_text())
    files = [manifest["router"], *manifest["routes"]]
    assert {path.name for path in folder.iterdir()} == {one["file"] for one in files} | {"manifest.json"}
    for one in files:
        assert hashlib.sha256((folder / one["file"]).read_bytes()).hexdigest() == one["sha256"]
    assert [one["columns"] for one in manifest["routes"]] == [{"width": 0}, {"width": 1}]
    assert manifest["routes"][1]["macs"] == manifest["source_macs"] == dyn.static_macs
    assert manifest["inputs"][0]["shape"] == [None, 3, 8, 8]
    router = onnx_session(folder / "router.onnx")
    (taken,) = (one.name for one in router.get_inputs())
    columns = list[int]()
    for i, x in enumerate(flat[0].split(1)):
        (rows,) = router.run(["route.width"], {taken: x.numpy()})
        columns.append(int(rows.argmax()))
        network = onnx_session(folder / manifest["routes"][columns[i]]["file"])
        (found,) = network.run(None, {network.get_inputs()[0].name: x.numpy()})
        output, route = dyn.run(x, policy=dc.Learned())
        assert int(route["width"].argmax()) == columns[i]
        assert torch.allclose(torch.as_tensor(found), output, atol=1e-5)
    assert set(columns) == {0, 1}
    with pytest.raises(DyncompileError, match="a new folder"):
        dc.export(dyn, folder, "bundle")


def test_bundles_have_finitely_many_routes(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"layer.stage1.0: gains"):
        dc.export(subject(handmade.resnet).dynamic("lcnet"), tmp_path / "a", "bundle")
    with pytest.raises(SpecError, match="no decision net"):
        dc.export(tiny("dsnet(gate=False)"), tmp_path / "a", "bundle")
    net = tiny("dsnet(gate=False)")
    with pytest.raises(SpecError, match="no single route can be asked of it"):
        dc.export(net, tmp_path / "a", "bundle", route=net.route(0))
    with pytest.raises(SpecError, match="256 routes are too many"):
        dc.export(subject(handmade.resnet).dynamic(f"dsnet({FINE}, per=block)"), tmp_path / "a", "bundle")
    assert not list(tmp_path.iterdir())


# -- what users get wrong -----------------------------------------------------------------------------


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    dyn = tiny("dsnet(ratios=(0.5, 1.0))")
    with pytest.raises(SpecError, match="onnx or pt2"):
        dc.export(dyn, tmp_path / "x", "tflite")
    with pytest.raises(SpecError, match="training mode"):
        dc.export(dyn.train(), tmp_path / "x.pt2", "pt2")
    dyn.eval()
    with pytest.raises(DyncompileError, match="a directory has the name"):
        dc.export(dyn, tmp_path, "pt2")
    with pytest.raises(InputError, match="must have shape"):
        dc.export(dyn, tmp_path / "x.pt2", "pt2", inputs=torch.randn(1, 3, 9, 9))
    with pytest.raises(InputError, match="at least one"):
        dc.export(dyn, tmp_path / "x.pt2", "pt2", inputs=torch.randn(0, 3, 8, 8))
    dyn.policy = dc.Learned(noise=True)
    with pytest.raises(SpecError, match="without noise"):
        dc.export(dyn, tmp_path / "x.pt2", "pt2")
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_where_the_file_is_not_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dyn, path = tiny("dsnet(ratios=(0.5, 1.0))"), tmp_path / "x.pt2"
    path.write_bytes(b"old")
    true = one_sample

    def wrong(*args: Any, **kwargs: Any) -> OneSample:
        found = true(*args, **kwargs)
        next(found.module.parameters()).data.mul_(1.5)
        return found

    module = importlib.import_module("dyncompile.deploy.exports.exporting")
    monkeypatch.setattr(module, "one_sample", wrong)
    with pytest.raises(ContractError, match=r"differs|decides otherwise"):
        dc.export(dyn, path, "pt2")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_route_is_a_static_network_at_any_batch(tmp_path: Path) -> None:
    dyn, x = tiny("dsnet(ratios=(0.5, 1.0))"), torch.randn(5, 3, 8, 8)
    dc.export(dyn, tmp_path / "narrow.pt2", "pt2", route=dyn.route(0))
    with torch.no_grad():
        found = torch.export.load(tmp_path / "narrow.pt2").module()(x)
        assert torch.allclose(found, dyn.run(x, policy=dc.Smallest())[0], atol=1e-5)


# -- numbers of any dtype, names of any kind ---------------------------------------------------------------


class Named(nn.Module):
    """[B, 8] -> outputs under given names, one of which holds infinities."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names
        self.first, self.second, self.head = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> dict[str, Any]:
        """Logits and others, [B, 5]."""
        y = self.head(self.second(self.first(x).relu()).relu())
        masked = y.masked_fill(torch.arange(5, device=y.device) > 2, -torch.inf)
        first, second, third = self.names
        return {first: {"b": y}, second: masked, third: y * torch.nan}


def named_outputs(*names: str) -> DynamicModel:
    return dc.dynamize(Named(names).eval(), "dsnet(ratios=(0.5, 1.0))", torch.randn(4, 8)).eval()


@pytest.mark.parametrize("route", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_models_that_were_cast_are_exported(dtype: torch.dtype, route: bool, tmp_path: Path) -> None:
    dyn = tiny("dsnet(ratios=(0.5, 1.0))").to(dtype)
    forced = dyn.route(0) if route else None
    dc.export(dyn, tmp_path / "x.pt2", "pt2", route=forced)
    dc.export(dyn, tmp_path / "x.pt2", "pt2", route=forced, inputs=torch.randn(2, 3, 8, 8, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_in_half_precision_is_no_difference(dtype: torch.dtype, tmp_path: Path) -> None:
    dyn = copy.deepcopy(subject(handmade.resnet).dynamic("dsnet(ratios=(0.5, 1.0))")).to(dtype).eval()
    written = dc.export(dyn, tmp_path / "x.pt2", "pt2")
    assert written.difference < 0.05
    with pytest.raises(ContractError, match="differs by"):
        samples.difference([torch.ones(3, dtype=dtype)], [torch.full((3,), 1.05, dtype=dtype)])


@pytest.mark.parametrize(
    "method", ["dsnet(ratios=(0.3, 0.6, 1.0))", "routing(connections=steps)", "resolution"]
)
def test_blanks_have_the_dtype_that_the_model_has_now(method: str, tmp_path: Path) -> None:
    dyn = copy.deepcopy(subject(handmade.resnet).dynamic(method)).double()
    assert dc.export(dyn.eval(), tmp_path / "x.pt2", "pt2").difference < 1e-12


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_a_route_is_compared_on_the_inputs_given(
    rows: int, format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[Tensor]()
    monkeypatch.setattr(static, "difference", lambda a, b: seen.extend([*a, *b]) or 0.0)
    dyn, x = tiny("dsnet(ratios=(0.5, 1.0))"), torch.randn(rows, 3, 8, 8)
    dc.export(dyn, tmp_path / "x", format, route=dyn.route(0), inputs=x)
    expected = dyn.run(x, policy=dc.Smallest())[0]
    assert all(torch.allclose(found, expected, atol=1e-5) for found in seen)
    with pytest.raises(InputError, match="must have shape"):
        dc.export(dyn, tmp_path / "x", format, route=dyn.route(0), inputs=x[:, :, :4])


@pytest.mark.parametrize("names", [("a", "x", "a_b"), ("linear", "relu", "head.weight")])
@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_outputs_keep_what_they_hold_and_names_that_are_free(
    format: str, names: tuple[str, str, str], tmp_path: Path
) -> None:
    written = dc.export(named_outputs(*names), tmp_path / "file", format)
    assert 0 <= written.difference < 1e-6
    if format == "onnx":
        found = [one.name for one in onnx_session(written.path).get_outputs()]
        free = {"a": ["a_b", "x_2", "a_b_2"], "linear": ["linear_b", "relu", "head.weight"]}
        assert found == [*free[names[0]], "route.width"]


def test_infinities_and_what_is_no_number_stay_where_they_are() -> None:
    value = torch.tensor([1.0, torch.inf, -torch.inf, torch.nan])
    assert samples.difference([value], [value + 1e-5]) == pytest.approx(1e-5, rel=0.1)
    one = torch.ones(4)
    for expected, found in ((value, -value), (value, one), (one, value), (one, one * torch.nan)):
        with pytest.raises(ContractError, match="differs by inf"):
            samples.difference([one, expected], [one, found])
    with pytest.raises(ContractError, match="no finite number"):
        samples.difference([one * torch.nan], [one * torch.nan])


def test_names_get_numbers_where_they_are_taken() -> None:
    assert samples.distinct(["a", "a", "a_2", "x", "a"], ["x"]) == ["a", "a_3", "a_2", "x_2", "a_4"]


def test_what_onnx_runtime_refuses_is_told(tmp_path: Path) -> None:
    for route in (None, {}):
        with pytest.raises(DyncompileError, match="ONNX Runtime refuses the network: NotImplemented"):
            dc.export(named_outputs("a", "b", "c").bfloat16(), tmp_path / "x.onnx", route=route)
    assert not list(tmp_path.iterdir())
