"""Early exits: heads by hand, costs, nesting, what does not run, calibration of thresholds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import dyncompile as dc
from dyncompile.analysis.points import Point
from dyncompile.exits import OFF, confidence
from dyncompile.heads import FEATURES, PooledHead
from dyncompile.train.calibrate_exit import fitted_temperature, outcomes
from dyncompile.verify.compare import count_macs
from tests import handmade
from tests.support import relative, same, subject


class Chain(nn.Module):
    """Four convolutions in a row on [B, 3, 8, 8], a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 if i == 0 else 6, 6, 3, padding=1) for i in range(4))
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 4]."""
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.head(x.mean((2, 3)))

    def until(self, x: Tensor, count: int) -> Tensor:
        """The first layers, pooled: [B, 6]."""
        for layer in self.layers[:count]:
            x = F.relu(layer(x))
        return x.mean((2, 3))


FIRST, LAYER = 64 * 27 * 6, 64 * 54 * 6
LINEAR = "grid=1, hidden=0"
"""Heads of one mean and a linear layer."""


def chain(spec: object = f"exits(at=(0.3, 0.75), {LINEAR})") -> tuple[Chain, dc.DynamicModel, Tensor]:
    torch.manual_seed(0)
    net = Chain().eval()
    x = torch.randn(6, 3, 8, 8)
    return net, dc.dynamize(net, spec, x).eval(), x  # pyright: ignore


def head(dyn: dc.DynamicModel, name: str) -> tuple[Tensor, Tensor]:
    prefix = f"dyn.heads.{name}.head"
    return dyn.get_parameter(f"{prefix}.weight"), dyn.get_parameter(f"{prefix}.bias")


@torch.no_grad()
def test_exits_by_hand() -> None:
    net, dyn, x = chain()
    assert list(dyn.choices) == ["exit.1", "exit.2"]
    features = [net.until(x, 1), net.until(x, 3)]
    early = [F.linear(f, *head(dyn, name)) for f, name in zip(features, dyn.choices, strict=True)]
    stops = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1], [0, 0], [0, 1.0]])
    route = {"exit.1": stops[:, :1], "exit.2": stops[:, 1:]}
    final = net(x)
    expected = torch.stack([final[0], early[0][1], early[1][2], early[0][3], final[4], early[1][5]])
    assert relative(expected, dyn.run(x, policy=dc.Forced(route))[0]) < 1e-6
    dense = dyn.record(x, policy=dc.Forced(route), execution="dense")
    assert relative(expected, dense.output) < 1e-6
    assert all(relative(a, b) < 1e-6 for a, b in zip(early, dense.early.values(), strict=True))
    whole = FIRST + 3 * LAYER + 24
    first, second = FIRST + 24, FIRST + 2 * LAYER + 24
    assert dyn.macs(route).tolist() == [whole, first, second, first, whole, second]
    spent = [whole + 48, first, second + 24, first, whole + 48, second + 24]
    assert dyn.spent(route).tolist() == spent
    for i in range(6):
        row = {name: value[i : i + 1] for name, value in route.items()}
        static = dc.specialize(dyn, row)
        assert relative(expected[i : i + 1], static(x[i : i + 1])) < 1e-6
        assert count_macs(lambda static=static: static(x[:1])) == float(dyn.macs(row)[0])


@torch.no_grad()
@pytest.mark.parametrize("narrow", [False, True])
def test_heads_see_a_grid_of_the_map_through_a_hidden_layer(narrow: bool) -> None:
    """Narrowed, they read the cells of the leading channels."""
    width = "dsnet(ratios=(0.5, 1.0), divisor=1, minimum=1, gate=False)"
    net, dyn, x = chain([*[width] * narrow, "exits(at=(0.75,), grid=3, hidden=5)"])
    route = dyn.route(0) if narrow else dyn.route({})
    y, channels = x, 3 if narrow else 6
    for layer in list(net.layers)[:3]:
        assert isinstance(layer, nn.Conv2d)
        assert layer.bias is not None
        y = F.relu(F.conv2d(y, layer.weight[:channels, : y.shape[1]], layer.bias[:channels], padding=1))
    cells = F.adaptive_avg_pool2d(y, (3, 3)).flatten(1)
    first, last = (dyn.get_parameter(f"dyn.heads.exit.1.{name}.weight") for name in ("reduce.0", "head"))
    biases = [dyn.get_parameter(f"dyn.heads.exit.1.{name}.bias") for name in ("reduce.0", "head")]
    assert first.shape == (5, 6 * 9)
    hidden = F.relu(F.linear(cells, first[:, : channels * 9], biases[0]))
    stop = {**route, "exit.1": torch.ones(1, 1)}
    assert relative(F.linear(hidden, last, biases[1]), dyn.run(x, policy=dc.Forced(stop))[0]) < 1e-5
    if not narrow:
        assert dyn.macs(stop).item() == FIRST + 2 * LAYER + 54 * 5 + 5 * 4


def test_a_grid_is_coarser_where_channels_are_many_and_a_hidden_layer_no_bottleneck() -> None:
    for channels, side, cells in (
        (8, 14, (4, 4)),
        (512, 14, (2, 2)),
        (1024, 14, None),
        (64, 3, (4, 4)),
        (64, 1, None),
    ):
        head = PooledHead(Point("x", {}, 1, (channels, side, side), ""), 100, 4, 64)
        logits, features = head(torch.randn(2, channels, side, side))
        assert logits.shape == (2, 100)
        assert features.shape[1] == channels * (cells[0] * cells[1] if cells else 1)
        assert features.shape[1] <= FEATURES
        assert head.head.in_features == 100


@torch.no_grad()
@pytest.mark.parametrize("kind", ["max", "entropy", "margin"])
def test_confidences(kind: str) -> None:
    sure, unsure = torch.tensor([[9.0, -9, -9]]) * 10, torch.zeros(1, 3)
    assert confidence(sure, kind).item() == pytest.approx(1)  # pyright: ignore
    least = {"max": 1 / 3, "entropy": 0, "margin": 0}[kind]
    assert confidence(unsure, kind).item() == pytest.approx(least, abs=1e-6)  # pyright: ignore
    p = torch.tensor([0.5, 0.3, 0.2])
    by_hand = {
        "max": 0.5,
        "entropy": 1 + float((p * p.log()).sum()) / float(torch.tensor(3.0).log()),
        "margin": 0.2,
    }
    assert confidence(p.log()[None], kind).item() == pytest.approx(by_hand[kind], rel=1e-5)  # pyright: ignore


@torch.no_grad()
def test_confident_samples_leave_and_the_rest_does_not_run() -> None:
    net, dyn, x = chain(f"exits(at=(0.3,), {LINEAR}, confidence=entropy)")
    assert not dyn.run(x, policy=dc.Learned())[1]["exit.1"].any()
    assert same(net(x), dyn.run(x, policy=dc.Learned())[0])
    early = F.linear(net.until(x, 1), *head(dyn, "exit.1"))
    dyn.get_buffer("dyn.exits.exit.1.temperature").fill_(0.5)
    sure = confidence(early / 0.5, "entropy")
    threshold = float(sure.sort(0).values[2:4].mean())
    dyn.get_buffer("dyn.exits.exit.1.threshold").fill_(threshold)
    output, route = dyn.run(x, policy=dc.Learned())
    assert torch.equal(route["exit.1"], (sure > threshold).float())
    assert int(route["exit.1"].sum()) == 3
    torch.testing.assert_close(output, torch.where(sure > threshold, early, net(x)))
    dyn.get_parameter("layers.2.weight").fill_(torch.nan)
    output, _ = dyn.run(x, policy=dc.Learned())
    assert torch.equal(output.isnan().any(1), route["exit.1"][:, 0] == 0)


@torch.no_grad()
def test_decisions_behind_an_exit_are_not_taken_for_who_left() -> None:
    _, dyn, x = chain([f"exits(at=(0.3,), {LINEAR})", "dsnet(divisor=1, minimum=1, per=block)"])
    late = [name for name in dyn.gated if name != "exit.1"]
    dyn.get_buffer("dyn.exits.exit.1.threshold").zero_()
    record = dyn.record(x, policy=dc.Learned())
    assert bool(record.route["exit.1"].all())
    after = [name for name in late if name not in record.logits or bool(record.logits[name].isnan().all())]
    assert after
    assert all(len(rows) == len(x) for rows in record.route.values())
    cost = dyn.spent(record.route)
    assert bool((cost == FIRST + 24).all()) or bool((cost < FIRST + LAYER).all())


@pytest.mark.parametrize("order", [0, 1])
def test_exits_nest_by_where_they_are_decided(order: int) -> None:
    passes = [f"exits(at=(0.3,), {LINEAR}, name=a)", f"exits(at=(0.75,), {LINEAR}, name=b)"]
    net, dyn, x = chain(passes[:: 1 - 2 * order])
    early = F.linear(net.until(x, 1), *head(dyn, "a.1"))
    both = {"a.1": torch.ones(1, 1), "b.1": torch.ones(1, 1)}
    assert relative(early, dyn.run(x, policy=dc.Forced(both))[0]) < 1e-6
    assert relative(early, dyn.record(x, policy=dc.Forced(both), execution="dense").output) < 1e-6
    assert relative(early, dc.specialize(dyn, both)(x)) < 1e-6
    assert dyn.macs(both).item() == FIRST + 24
    assert dc.verify(dyn, net, x).passed


def test_places_are_taken_once_and_refusals_have_reasons() -> None:
    _, dyn, _ = chain("exits(at=(0.3, 0.31, 0.75))")
    assert len(dyn.choices) == 2
    assert "has an exit already" in dyn.explain()
    assert "head at relu" in dyn.explain()
    found = subject(handmade.decoder)
    with pytest.raises(dc.NoSiteError, match="no row of class scores"):
        found.dynamic("exits")
    with pytest.raises(dc.SpecError, match="shares of the MACs"):
        chain("exits(at=(0.0,))")
    with pytest.raises(dc.SpecError, match="a confidence is one of"):
        chain("exits(confidence=vote)")
    with pytest.raises(dc.SpecError, match="grid is at least 1"):
        chain("exits(grid=0)")


@torch.no_grad()
@pytest.mark.parametrize("rows", [0, 1])
def test_small_batches(rows: int) -> None:
    net, dyn, x = chain()
    for policy in (dc.Full(), dc.Learned()):
        out, route = dyn.run(x[:rows], policy=policy)
        assert same(net(x[:rows]), out)
        assert all(len(value) == rows for value in route.values())
    assert dyn.run(x[:rows], policy=dc.Smallest())[0].shape == (rows, 4)


# -- calibration -------------------------------------------------------------------------------------


class Graded(nn.Module):
    """Images whose class is easy to see early only where the image is strong."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False)
        with torch.no_grad():
            for layer in (self.one, self.two):
                layer.weight.copy_(torch.eye(4)[..., None, None])

    def forward(self, x: Tensor) -> Tensor:
        return 5 * F.relu(self.two(F.relu(self.one(x)))).mean((2, 3))


def graded() -> tuple[dc.DynamicModel, Tensor, Tensor]:
    """The early head is right where it is confident: it sees class 3 as class 0, weakly."""
    torch.manual_seed(0)
    labels = torch.arange(4).repeat(25)
    strength = 0.5 + torch.rand(100)
    x = (F.one_hot(labels, 4) * strength[:, None])[..., None, None].expand(-1, -1, 2, 2).float()
    dyn = dc.dynamize(Graded(), f"exits(at=(0.6,), {LINEAR})", x[:2]).eval()
    with torch.no_grad():
        weight, bias = head(dyn, "exit.1")
        weight.copy_(3 * torch.eye(4))
        weight[:, 3] = torch.tensor([0.2, 0, 0, 0])
        bias.zero_()
    return dyn, x, labels


def test_a_threshold_meets_an_accuracy_or_a_budget() -> None:
    dyn, x, labels = graded()
    careful = dc.calibrate_exit(dyn, [(x[:60], labels[:60]), (x[60:], labels[60:])], accuracy_drop=0.0)
    assert careful.final_accuracy == careful.accuracy == 1
    assert careful.left["exit.1"] == pytest.approx(0.75)
    out, route = dyn.run(x, policy=dc.Learned())
    assert float((out.argmax(1) == labels).float().mean()) == 1
    assert float(route["exit.1"].mean()) == pytest.approx(0.75)
    assert careful.share == pytest.approx(float(dyn.spent(route).mean()) / dyn.static_macs)
    assert careful.temperatures["exit.1"] != 1
    cheap = dc.calibrate_exit(dyn, [(x, labels)], accuracy_drop=0.25)
    assert cheap.accuracy == pytest.approx(0.75)
    assert cheap.left["exit.1"] == 1
    middle = (careful.share + careful.final_share) / 2
    budget = dc.calibrate_exit(dyn, [(x, labels)], target=min(1.0, middle))
    assert budget.share <= min(1.0, middle)
    assert budget.threshold > cheap.threshold
    reached = float(dyn.spent(dyn.run(x, policy=dc.Learned())[1]).mean()) / dyn.static_macs
    assert reached == pytest.approx(budget.share)


def test_outcomes_foretell_what_thresholds_do() -> None:
    dyn, x, labels = graded()
    before = {name: value.clone() for name, value in dyn.state_dict().items()}
    found = outcomes(dyn, [(x[:60], labels[:60]), (x[60:], labels[60:])])
    assert all(torch.equal(before[name], value) for name, value in dyn.state_dict().items())
    for threshold in (-1.0, float(found.sure.median()), OFF):
        dyn.get_buffer("dyn.exits.exit.1.threshold").fill_(threshold)
        out, route = dyn.run(x, policy=dc.Learned())
        assert torch.equal(route["exit.1"][:, 0] > 0, found.leaving(threshold) == 0)
        right = float((out.argmax(1) == labels).double().mean())
        share = float(dyn.spent(route).mean()) / dyn.static_macs
        assert found.at(threshold) == pytest.approx((right, share))


def test_calibration_judges_by_labels_of_every_form() -> None:
    dyn, x, labels = graded()
    found = outcomes(dyn, [(x, labels)])
    probabilities = F.one_hot(labels).float()
    assert torch.equal(outcomes(dyn, [(x, probabilities)]).right, found.right)
    some = labels.clone()
    some[::2] = -100
    assert torch.equal(outcomes(dyn, [(x, some)]).right, found.right[1::2])
    for bad, text in ((labels - 1, "out of range"), (torch.full_like(labels, -100), "no labeled samples")):
        with pytest.raises(dc.InputError, match=text):
            outcomes(dyn, [(x, bad)])


def test_calibration_refuses_and_leaves_thresholds_as_they_were() -> None:
    dyn, x, labels = graded()
    with pytest.raises(dc.SpecError, match="either a target"):
        dc.calibrate_exit(dyn, [(x, labels)])
    with pytest.raises(dc.SpecError, match="as cheap as the target"):
        dc.calibrate_exit(dyn, [(x, labels)], target=0.01)
    assert dyn.get_buffer("dyn.exits.exit.1.threshold").item() == OFF
    assert dyn.get_buffer("dyn.exits.exit.1.temperature").item() == 1
    with pytest.raises(dc.InputError, match="no samples"):
        dc.calibrate_exit(dyn, [], target=0.9)
    plain = dc.dynamize(Chain(), "lcnet(layers=False)", torch.zeros(2, 3, 8, 8))
    with pytest.raises(dc.SpecError, match="no exit"):
        dc.calibrate_exit(plain, [(x, labels)], target=0.9)


@settings(max_examples=15)
@given(scale=st.floats(0.3, 4), seed=st.integers(0, 99))
def test_temperatures_undo_a_scale(scale: float, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(500, 5, generator=random)
    labels = torch.multinomial(logits.softmax(1), 1, generator=random)[:, 0]
    whole = fitted_temperature(logits, labels)
    assert fitted_temperature(logits * scale, labels) == pytest.approx(scale * whole, rel=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("order", [("width", "heads"), ("heads", "width")])
def test_heads_read_what_other_passes_have_narrowed(order: tuple[str, str]) -> None:
    """At the smallest width the head after three layers reads leading channels, by its leading columns."""
    passes = {
        "width": "dsnet(ratios=(0.5, 1.0), divisor=1, minimum=1)",
        "heads": f"exits(at=(0.75,), {LINEAR})",
    }
    net, dyn, x = chain([passes[name] for name in order])
    width = next(choice for choice in dyn.choices.values() if choice.domain is dc.Domain.ONE_HOT)
    dyn.get_parameter(f"dyn.gates.{width.name}.head.bias").copy_(torch.tensor([9.0, 0.0]))
    dyn.get_buffer("dyn.exits.exit.1.threshold").fill_(-1)
    out, route = dyn.run(x, policy=dc.Learned())
    assert route[width.name].argmax(1).tolist() == [0] * 6
    assert bool((route["exit.1"] == 1).all())
    y = F.relu(net.layers[0](x))
    for layer in list(net.layers)[1:3]:
        assert isinstance(layer, nn.Conv2d)
        assert layer.bias is not None
        y = F.relu(F.conv2d(y, layer.weight[:3, : y.shape[1]], layer.bias[:3], padding=1))
    weight, bias = head(dyn, "exit.1")
    assert relative(out, F.linear(y.mean((2, 3)), weight[:, :3], bias)) < 1e-5
