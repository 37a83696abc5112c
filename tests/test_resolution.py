"""Dynamic resolution against networks that are run by hand on images resized by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import dyncompile as dc
from dyncompile.deploy.recalibrate import recalibrate
from dyncompile.gate import without_gates
from dyncompile.passes.resolution.predictors import Predictor, macs_of
from dyncompile.policies import Forced, Learned
from dyncompile.runtime.model import DynamicModel
from dyncompile.train.distributed import statistics_of
from dyncompile.train.optim import is_gate
from dyncompile.train.phase import Batch
from dyncompile.variants import at, copy_program
from dyncompile.verify.compare import count_macs
from tests import handmade
from tests.support import FINE, same, snapshot

SIZES = ((6, 6), (9, 9), (12, 12))
NORMS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class Block(nn.Module):
    """A residual block with a shortcut that has a norm."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out)
        self.down, self.down_norm = nn.Conv2d(width, out, 1, 2, bias=False), nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)) + self.down_norm(self.down(x)))


class Net(nn.Module):
    """A stem, a block, a second one that adds to what it got, a classifier; widths that DS-Net can cut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.block = Block(8, 12)
        self.inner, self.inner_norm = nn.Conv2d(12, 10, 3, padding=1), nn.BatchNorm2d(10)
        self.outer = nn.Conv2d(10, 12, 1)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(F.relu(self.stem_norm(self.stem(x))))
        x = x + self.outer(F.relu(self.inner_norm(self.inner(x))))
        return self.head(self.drop(x.mean((2, 3))))


@cache
def source() -> nn.Module:
    torch.manual_seed(5)
    net = Net()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()


@cache
def made(*specs: str) -> DynamicModel:
    return dc.dynamize(source(), list(specs or ("resolution",)), images(2)).eval()


def images(rows: int, seed: int = 1, size: tuple[int, int] = (12, 12)) -> Tensor:
    return torch.randn(rows, 3, *size, generator=torch.Generator().manual_seed(seed))


def resized(x: Tensor, column: int) -> Tensor:
    size = SIZES[column]
    return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear", antialias=True)


def one_hot(columns: list[int], width: int = 3) -> Tensor:
    return F.one_hot(torch.tensor(columns), width).float()


def by_hand(dyn: DynamicModel, column: int) -> nn.Module:
    """The source with what the dynamic model holds for a size, copied key by key."""
    net, state = copy.deepcopy(source()), dyn.state_dict()
    lead = "" if column == 2 else f"dyn.sizes.{SIZES[column][0]}."
    own = {name: state.get(lead + name, state[name]) for name in net.state_dict()}
    net.load_state_dict(own)
    return net


@torch.no_grad()
def diverged(dyn: DynamicModel, seed: int = 0) -> DynamicModel:
    """A copy whose norms differ at every size and whose predictor tells images apart."""
    dyn, random = copy.deepcopy(dyn), torch.Generator().manual_seed(seed)
    for name, value in (*dyn.named_parameters(), *dyn.named_buffers()):
        if name.startswith("dyn.sizes.") and value.is_floating_point():
            value.mul_(0.5 + torch.rand(value.shape, generator=random))
        if is_gate(name):
            value.copy_(torch.randn(value.shape, generator=random))
    name = "dyn.gates.resolution.head.bias"
    if name in dict(dyn.named_parameters()):
        dyn.get_parameter(name).zero_()
        logits = dyn.record(images(16), policy=Learned()).logits["resolution"]
        dyn.get_parameter(name).sub_(logits.median(0).values)
    return dyn


# -- what it computes --------------------------------------------------------------------------------


@pytest.mark.parametrize("column", range(3))
@torch.no_grad()
def test_every_size_is_the_source_on_the_resized_image(column: int) -> None:
    dyn, x = made(), images(3)
    assert dyn.program.variants is not None
    assert dyn.program.variants.sizes == SIZES
    found = dyn.run(x, policy=Forced(dyn.route(column)))[0]
    assert torch.equal(found, source()(resized(x, column)))
    static = dc.specialize(dyn, dyn.route(column))
    assert torch.equal(static(x), found)


@pytest.mark.parametrize("column", range(3))
@torch.no_grad()
def test_norms_of_each_size_are_its_own(column: int) -> None:
    dyn, x = diverged(made()), images(3)
    expected = by_hand(dyn, column)(resized(x, column))
    assert torch.equal(dyn.run(x, policy=Forced(dyn.route(column)))[0], expected)
    assert torch.equal(expected, source()(resized(x, column))) == (column == 2)


@settings(max_examples=12)
@given(columns=st.lists(st.integers(0, 2), min_size=1, max_size=7), training=st.booleans())
def test_mixed_sizes_come_back_in_input_order(columns: list[int], training: bool) -> None:
    dyn, x = diverged(made()), images(len(columns))
    dyn.train(training)
    nets = [by_hand(dyn, column).train(training) for column in range(3)]
    for net in (dyn, *nets):
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    if training:  # the graph draws its own dropout: compare what the statistics saw instead
        dyn.run(x, policy=Forced({"resolution": one_hot(columns)}))
        for column, net in enumerate(nets):
            rows = [row for row, other in enumerate(columns) if other == column]
            if rows:
                net(resized(x[rows], column))
            lead = "" if column == 2 else f"dyn.sizes.{SIZES[column][0]}."
            for name, value in net.named_buffers():
                torch.testing.assert_close(dyn.state_dict()[lead + name], value)
        return
    with torch.no_grad():
        found = dyn.run(x, policy=Forced({"resolution": one_hot(columns)}))[0]
        for row, column in enumerate(columns):
            expected = nets[column](resized(x[row : row + 1], column))
            torch.testing.assert_close(found[row : row + 1], expected)


@torch.no_grad()
def test_the_predictor_sees_the_native_image_once() -> None:
    dyn, x = diverged(made()), images(9)
    record = dyn.record(x, policy=Learned())
    net = at(dyn.program, 2).state  # the predictor is in no size's own state
    assert not any(name.startswith("dyn.gates") for name, _ in net.named_parameters())
    weights = {n.removeprefix("dyn.gates.resolution."): p for n, p in dyn.named_parameters() if is_gate(n)}
    hidden = F.adaptive_avg_pool2d(x, 4).flatten(1) @ weights["body.1.weight"].T + weights["body.1.bias"]
    logits = hidden.relu() @ weights["head.weight"].T + weights["head.bias"]
    torch.testing.assert_close(record.logits["resolution"], logits)
    columns = record.route["resolution"].argmax(1)
    assert torch.equal(columns, logits.argmax(1))
    assert len(columns.unique()) > 1
    for row, column in enumerate(columns.tolist()):
        alone = by_hand(dyn, column)(resized(x[row : row + 1], column))
        torch.testing.assert_close(record.output[row : row + 1], alone)


@torch.no_grad()
def test_the_predictor_sees_a_small_copy_without_aliasing() -> None:
    net, x = Predictor("linear", 3, 2, (4, 6), 0.9, "resolution"), images(5, size=(8, 12))
    nn.init.normal_(net.head.weight)
    small = F.interpolate(x, (4, 6), mode="bilinear", antialias=True)
    torch.testing.assert_close(net(x), net.head(net.body(small)))
    assert not torch.allclose(net(x), net.head(net.body(x)))


@torch.no_grad()
def test_evaluation_draws_nothing_and_untrained_predictors_keep_the_native_size() -> None:
    dyn, x = made(), images(5)
    before = torch.get_rng_state()
    assert torch.equal(dyn(x), source()(x))
    assert torch.equal(dyn.run(x, policy=dc.Full())[0], source()(x))
    assert torch.equal(dyn.run(x, policy=dc.Smallest())[0], source()(resized(x, 0)))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_size_that_no_row_takes_does_not_run() -> None:
    dyn = diverged(made())
    with torch.no_grad():
        for name, parameter in dyn.named_parameters():
            if name.startswith("dyn.sizes.6."):
                parameter.fill_(float("nan"))
    found = dyn.run(images(4), policy=Forced({"resolution": one_hot([1, 2, 2, 1])}))[0]
    assert found.isfinite().all()


@pytest.mark.parametrize("rows", [0, 1])
def test_tiny_batches(rows: int) -> None:
    dyn = diverged(made())
    assert dyn(images(rows)).shape == (rows, 4)
    assert dyn.macs(dyn.run(images(rows), policy=Learned())[1]).shape == (rows,)


# -- decisions carry gradients -------------------------------------------------------------------------


@pytest.mark.parametrize("execution", ["sparse", "dense"])
def test_the_loss_reaches_the_predictor_through_what_it_chose(execution: Any) -> None:
    dyn, x = diverged(made()), images(6)
    record = dyn.record(x, policy=Learned(tau=0.7), execution=execution)
    rows = record.route["resolution"]
    rows.retain_grad()
    record.output.sum().backward()
    assert rows.grad is not None
    outputs = torch.stack([by_hand(dyn, c)(resized(x, c)).sum(1) for c in range(3)], 1).detach()
    expected = outputs if execution == "dense" else outputs * rows.detach()
    torch.testing.assert_close(rows.grad, expected, rtol=1e-4, atol=1e-5)
    gates = [p for name, p in dyn.named_parameters() if is_gate(name)]
    assert all(p.grad is not None and p.grad.any() for p in gates)


def test_the_decision_is_exactly_one_in_value() -> None:
    dyn, x = diverged(made()), images(8)
    record = dyn.record(x, policy=Learned(), execution="sparse")
    with torch.no_grad():
        plain = dyn.run(x, policy=Forced({"resolution": record.route["resolution"].detach()}))[0]
    assert record.output.requires_grad
    assert torch.equal(record.output, plain)


@torch.no_grad()
def test_soft_decisions_mix_all_sizes() -> None:
    dyn, x = diverged(made()), images(4)
    output, route = dyn.run(x, policy=Learned(hard=False))
    outputs = torch.stack([by_hand(dyn, c)(resized(x, c)) for c in range(3)], 1)
    torch.testing.assert_close(output, (route["resolution"][:, :, None] * outputs).sum(1))


# -- cost ----------------------------------------------------------------------------------------------


def test_macs_are_those_of_the_source_at_each_size() -> None:
    dyn = made()
    counted = [count_macs(lambda c=c: source()(resized(images(1), c))) for c in range(3)]
    found = dyn.macs({"resolution": torch.eye(3)})
    assert found.tolist() == counted
    assert dyn.static_macs == counted[2]
    assert counted[1] / counted[2] > 0.5625  # 9 / 2 rounds up to 5: more than the share of the area
    assert dyn.decision_macs == 48 * 16 + 16 * 3
    rows = torch.tensor([[0.2, 0.3, 0.5]], requires_grad=True)
    cost = dyn.macs({"resolution": rows})
    cost.sum().backward()
    assert float(cost.detach()) == pytest.approx(
        sum(w * n for w, n in zip((0.2, 0.3, 0.5), counted, strict=True))
    )
    assert rows.grad is not None
    assert rows.grad[0].tolist() == pytest.approx(counted)


def test_learned_routes_pay_for_the_predictor() -> None:
    dyn = diverged(made())
    route = dyn.run(images(6), policy=Learned())[1]
    assert torch.equal(dyn.spent(route), dyn.macs(route).double() + 48 * 16 + 16 * 3)


def test_static_networks_count_alike() -> None:
    dyn = made("resolution", f"dsnet({FINE}, ratios=(0.5, 1.0))")
    for column in range(3):
        route = dyn.route({"resolution": column, "width": 0})
        static = dc.specialize(dyn, route)
        assert count_macs(lambda static=static: static(images(1))) == float(dyn.macs(route)[0])


@pytest.mark.parametrize("kind", ["mobile", "linear"])
def test_predictors_cost_what_they_run(kind: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = images(2, 1, (72, 90))
    dyn = dc.dynamize(net, f"resolution(predictor={kind}, sizes=(36,))", x).eval()
    full = count_macs(lambda: dyn.run(x[:1], policy=Learned())[0])
    assert full == dyn.decision_macs + dyn.static_macs
    assert dyn.choices["resolution"].labels == ("36x45", "72x90")
    assert dyn.record(x, policy=Learned()).logits["resolution"].shape == (2, 2)
    for name, parameter in dyn.named_parameters():  # no batch norm: no statistics
        assert not is_gate(name) or "running" not in name
        assert parameter.requires_grad
    assert not [name for name, _ in dyn.named_buffers() if is_gate(name)]


def test_the_published_predictor_has_the_published_size() -> None:
    net = Predictor("residual", 3, 3, (128, 128), 0.9, "resolution")
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(4.907e6, rel=0.01)
    assert macs_of(net, 3) == pytest.approx(0.290e9, rel=0.01)


# -- state ---------------------------------------------------------------------------------------------


def test_norms_alone_are_private_shortcuts_included() -> None:
    keys = [key for key in made().state_dict() if key.startswith("dyn.sizes.6.")]
    norms = ["stem_norm", "block.norm", "block.down_norm", "inner_norm"]
    assert sorted(keys) == sorted(f"dyn.sizes.6.{norm}.{leaf}" for norm in norms for leaf in NORMS)
    for key in keys:
        assert torch.equal(made().state_dict()[key], source().state_dict()[key.removeprefix("dyn.sizes.6.")])
    owner = made().program.state
    assert owner.get_parameter("dyn.sizes.6.stem_norm.weight") is not owner.get_parameter("stem_norm.weight")


def test_stored_are_the_source_the_norms_of_each_size_and_the_predictor() -> None:
    norms = 2 * 2 * (8 + 12 + 12 + 10)  # of the two smaller sizes: weight and bias
    predictor = sum(p.numel() for name, p in made().named_parameters() if is_gate(name))
    assert predictor > 0
    assert made().stored_parameters == sum(p.numel() for p in source().parameters()) + norms + predictor


def test_weights_are_one_tensor_at_all_sizes_also_after_moving() -> None:
    dyn = copy.deepcopy(made()).double()
    x = images(3).double()
    with torch.no_grad():
        dyn.get_parameter("stem.weight").mul_(2)
        dyn.get_buffer("dyn.sizes.6.stem_norm.running_mean").add_(1)
        for column in range(3):
            expected = by_hand(dyn.float(), column).double()(resized(x, column))
            dyn.double()
            found = dyn.run(x, policy=Forced(dyn.route(column)))[0]
            assert found.dtype == torch.float64
            torch.testing.assert_close(found, expected)
    dyn.train().run(x, policy=Forced(dyn.route(0)))
    assert int(dyn.get_buffer("dyn.sizes.6.stem_norm.num_batches_tracked")) == 1
    assert int(dyn.get_buffer("stem_norm.num_batches_tracked")) == 0


def test_copies_are_independent() -> None:
    dyn, x = made(), images(3)
    before = snapshot(dyn)
    new = diverged(dyn)
    new.train().run(x, policy=Forced(new.route(1)))
    assert same(before, snapshot(dyn))
    program = copy_program(dyn.program, {})
    assert program.fingerprint == dyn.program.fingerprint
    assert program.variants is not None
    assert dyn.program.variants is not None
    assert program.variants.others[0].graphs["eval"] is not dyn.program.variants.others[0].graphs["eval"]


def test_sizes_are_part_of_the_fingerprint() -> None:
    other = dc.dynamize(source(), "resolution(sizes=(5, 9))", images(2))
    assert other.program.fingerprint != made().program.fingerprint


def test_save_and_load(tmp_path: Path) -> None:
    dyn, x = diverged(made("resolution", "lcnet(channels=False)")), images(5)
    dc.save(dyn, tmp_path)
    loaded = dc.load(tmp_path, source())
    assert loaded.history == ("resolution", "lcnet(channels=False)")
    with torch.no_grad():
        ours, theirs = dyn.run(x, policy=Learned()), loaded.run(x, policy=Learned())
    assert same(ours, theirs)


def test_statistics_of_all_sizes_are_known_and_recalibrated_from_resized_images() -> None:
    dyn = diverged(made())
    names = {n for n, _ in dyn.named_buffers() if n.rpartition(".")[2] in ("running_mean", "running_var")}
    assert statistics_of(dyn) == names
    batches = [Batch((images(8, seed),), {}, None) for seed in range(3)]
    native = {n: v for n, v in snapshot(dyn).items() if not n.startswith("dyn.")}
    recalibrate(dyn, batches)
    after = snapshot(dyn)
    assert all(torch.equal(after[name], value) for name, value in native.items())
    for column in (0, 1):
        x = torch.cat([resized(batch.args[0], column) for batch in batches])
        features = source().get_submodule("stem")(x)
        found = after[f"dyn.sizes.{SIZES[column][0]}.stem_norm.running_mean"]
        torch.testing.assert_close(found, features.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


# -- other passes ---------------------------------------------------------------------------------------

PAIRS = (
    ("lcnet(bits=True)", "resolution(sizes=(0.5,))"),
    (
        "dsnet(divisor=1, minimum=1, ratios=(0.5, 1.0))",
        "resolution(sizes=(0.5,), predictor=none)",
        "lcnet(channels=False)",
    ),
)


@pytest.mark.parametrize("specs", PAIRS, ids=str)
def test_other_passes_apply_to_all_sizes(specs: tuple[str, ...]) -> None:
    dyn = made(*specs)
    assert dc.verify(dyn, source(), images(4), routes=1).passed
    gates = [name for name, _ in dyn.named_parameters() if is_gate(name)]
    assert not [name for name in gates if name.startswith("dyn.sizes")]


@torch.no_grad()
def test_every_row_keeps_its_size_and_its_other_decisions() -> None:
    dyn = diverged(made("resolution", f"dsnet({FINE}, ratios=(0.5, 1.0))"))
    x, columns, widths = images(6), [2, 0, 1, 0, 2, 1], [0, 1, 1, 0, 1, 0]
    route = {"resolution": one_hot(columns), "width": one_hot(widths, 2)}
    record = dyn.record(x, policy=Forced(route))
    assert all(torch.equal(record.route[name], rows) for name, rows in route.items())
    for row in range(6):
        own = {name: rows[row : row + 1] for name, rows in route.items()}
        alone = dyn.run(x[row : row + 1], policy=Forced(own))[0]
        torch.testing.assert_close(record.output[row : row + 1], alone)


@torch.no_grad()
def test_order_does_not_matter() -> None:
    specs = ["lcnet(channels=False)", "resolution"]
    one, other = made(*specs), made(*reversed(specs))
    assert set(one.state_dict()) == set(other.state_dict())
    assert set(one.choices) == set(other.choices)
    x = images(6)
    route = one.run(x, policy=dc.Sampled(3, per_sample=True))[1]
    assert torch.equal(one.run(x, policy=Forced(route))[0], other.run(x, policy=Forced(route))[0])
    assert torch.equal(one.macs(route), other.macs(route))


@torch.no_grad()
def test_private_widths_are_private_at_every_size() -> None:
    dyn = made("resolution", f"dsnet({FINE}, ratios=(0.5, 1.0))")
    keys = [key for key in dyn.state_dict() if "statistics" in key]
    assert any(key.startswith("dyn.statistics.") for key in keys)
    assert any(key.startswith("dyn.sizes.6.dyn.statistics.") for key in keys)


# -- refusals -------------------------------------------------------------------------------------------


def refused(make: Callable[[], Any], *words: str) -> None:
    with pytest.raises(dc.DyncompileError) as raised:
        make()
    for word in words:
        assert word in str(raised.value), str(raised.value)


def test_a_flatten_net_is_refused_with_its_layer() -> None:
    net, x = handmade.flatten_cnn()
    refused(lambda: dc.dynamize(net, "resolution", x), "4: it does not take 4", "`2.0` (Linear)", "24 and 96")


class Flat(nn.Module):
    """Takes any size whose map comes out as 3x3."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, 4, 1), nn.Linear(36, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).flatten(1))


def test_sizes_that_work_are_taken_and_others_listed_with_line_and_reason() -> None:
    dyn = dc.dynamize(Flat(), "resolution(sizes=(6, 9, 10, 14))", images(2))
    assert dyn.choices["resolution"].labels == ("9", "10", "12")
    (plan,) = dyn.plans
    reasons = {one.name: one for one in plan.rejections}
    assert set(reasons) == {"6", "14"}
    assert "`head` (Linear) says" in reasons["6"].reason
    assert "test_resolution.py" in reasons["6"].line
    assert "self.head(self.conv(x).flatten(1))" in reasons["6"].line
    assert "not smaller than the native 12" in reasons["14"].reason
    assert "test_resolution.py" in dyn.explain()


class Maps(nn.Module):
    """Gives a map whose size follows the image's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def test_outputs_of_other_shapes_are_refused() -> None:
    refused(lambda: dc.dynamize(Maps(), "resolution", images(2)), "an output has another shape")


class Pair(nn.Module):
    """Two images and a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, left: Tensor, right: Tensor, scale: Tensor) -> Tensor:
        return (self.conv(left).mean((2, 3)) + self.conv(right).mean((2, 3))) * scale


def test_the_image_is_named_where_there_are_several() -> None:
    torch.manual_seed(0)
    net, inputs = Pair().eval(), (images(2), images(2, 2), images(2, 3)[:, 0, 0, :4])
    refused(lambda: dc.dynamize(net, "resolution", inputs), "name the image", "left, right")
    refused(lambda: dc.dynamize(net, "resolution(image=middle)", inputs), "'middle' is none of", "left")
    dyn = dc.dynamize(net, "resolution(image=right)", inputs).eval()
    with torch.no_grad():
        found = dyn.run(*inputs, policy=Forced({"resolution": one_hot([1, 0])}))[0]
        left, right, scale = inputs
        for row, column in ((0, 1), (1, 0)):
            at_row = slice(row, row + 1)
            expected = net(left[at_row], resized(right[at_row], column), scale[at_row])
            torch.testing.assert_close(found[at_row], expected)


def test_other_refusals() -> None:
    refused(lambda: dc.dynamize(nn.Linear(3, 2), "resolution", torch.randn(2, 3)), "no 4-D floating-point")
    refused(lambda: dc.dynamize(source(), ["resolution", "resolution(name=again)"], images(2)), "already")
    for wrong in ("sizes=()", "sizes=(0.0,)", "sizes=(1.5,)", "sizes=(-3,)", "predictor=huge", "view=-1"):
        refused(lambda wrong=wrong: dc.dynamize(source(), f"resolution({wrong})", images(2)))
    refused(lambda: made().macs({}), "lacks the choices ['resolution']")
    refused(lambda: made().run(images(2, size=(6, 6)), policy=Learned()), "Bx3x12x12")
    refused(lambda: dc.specialize(made(), {"resolution": torch.eye(3)}), "3 different rows")


def test_shares_are_rounded_as_stated() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    dyn = dc.dynamize(net, "resolution(sizes=(0.3, 0.52, 40))", torch.randn(2, 3, 64, 94))
    assert dyn.choices["resolution"].labels == ("16x24", "32x47", "40x59", "64x94")


@pytest.mark.parametrize("alone", [0, 1], ids=["small alone", "native alone"])
def test_a_size_of_one_row_and_one_position_keeps_its_statistics(alone: int) -> None:
    """One value per channel has no variance: torch's operator would store NaN."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 8, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    dyn = dc.dynamize(net, "resolution(sizes=(6,), predictor=linear)", images(2, size=(8, 8))).train()
    before, x = snapshot(dyn), images(3, size=(8, 8)).requires_grad_()
    columns = torch.tensor([alone, 1 - alone, 1 - alone])
    out = dyn.run(x, policy=Forced({"resolution": one_hot(columns.tolist(), 2)}))[0]
    out[0].sum().backward()
    after, homes = snapshot(dyn), ("dyn.sizes.6.1.", "1.")
    for name in ("running_mean", "running_var"):
        assert torch.equal(before[homes[alone] + name], after[homes[alone] + name])
        assert not torch.equal(before[homes[1 - alone] + name], after[homes[1 - alone] + name])
        assert bool(after[homes[1 - alone] + name].isfinite().all())
    lone = dyn.eval().run(x, policy=Forced({"resolution": one_hot(columns.tolist(), 2)}))[0][0]
    torch.testing.assert_close(out[0], lone)
    assert x.grad is not None
    assert bool(x.grad[0].any()), "the lone row learns"


# -- reports --------------------------------------------------------------------------------------------


def test_explain_lists_sizes_costs_and_norms() -> None:
    text = made().explain()
    assert "resolution (one-hot)" in text
    assert "6 / 9 / 12" in text
    assert "4 batch norms of its own" in text
    assert "net on x [3x12x12]" in text
    assert "native: not resized" in text
    assert "no captured graph reads" not in text


def test_the_native_graph_has_no_trace_of_sizes() -> None:
    program = made().program
    assert without_gates(program.graphs["eval"]).python_code("self").src.count("upsample") == 0
    assert "dyn." not in "".join(str(n.target) for n in program.graphs["eval"].nodes if n.op == "get_attr")
