"""Training of real models with gains or bits: calibration, use of routes, the recipe."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import dyncompile as dc
from dyncompile.policies import Learned
from dyncompile.program import Choice, Domain
from dyncompile.train import Batch, Clock, Moment, Optimization, Phase, Recipe, Turn, fit, recipes
from dyncompile.train.budget import Budget
from dyncompile.train.calibrate import calibrate
from dyncompile.train.columns import column_shares
from dyncompile.train.diagnostics import COUNTABLE, summarize
from dyncompile.train.gains import BatchShaping, RateTargets, RouteConsistency
from dyncompile.train.objectives import Distillation, TaskLoss
from tests.support import snapshot


def gains(name: str, width: int) -> Choice:
    return Choice(name, Domain.GAINS, (1.0,) * width, (0.0,) * width)


# -- calibration ------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.second(F.relu(self.first(x)))))


@cache
def _made(spec: str, blocks: int) -> dc.DynamicModel:
    torch.manual_seed(1)
    layers = [nn.Linear(2, 16), nn.ReLU(), *(Block(16) for _ in range(blocks)), nn.Linear(16, 2)]
    return dc.dynamize(nn.Sequential(*layers), spec, torch.randn(2, 2))


def gated(spec: str = "lcnet(channels=False)", blocks: int = 4) -> dc.DynamicModel:
    """A model whose gates say something different of every sample, and switch about half of all off."""
    dyn = copy.deepcopy(_made(spec, blocks))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in dyn.named_parameters():
            if name.endswith("head.weight"):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
            if name.endswith("head.bias"):
                parameter.fill_(0.3)
    return dyn


def samples(count: int = 300) -> list[Batch]:
    x = torch.randn(count, 2, generator=torch.Generator().manual_seed(3))
    return [Batch((part,), {}, None) for part in x.split(130)]


def samples_of(count: int) -> TensorDataset:
    """The same points with labels that nothing depends on."""
    x = torch.cat([batch.args[0] for batch in samples(count)])
    return TensorDataset(x, torch.zeros(count, dtype=torch.int64))


@torch.no_grad()
def mean_share(dyn: dc.DynamicModel) -> float:
    macs = [dyn.macs(dyn.eval().record(*b.args, policy=dc.Learned()).route) for b in samples()]
    return float(torch.cat(macs).mean() + dyn.decision_macs) / dyn.static_macs


@pytest.mark.parametrize("spec", ["lcnet(block=5)", "lcnet(block=5, bits=True)"])
def test_a_switch_is_priced_by_what_it_adds(spec: str) -> None:
    dyn = gated(spec, blocks=2)
    full = {name: torch.ones(1, choice.width) for name, choice in dyn.choices.items()}
    for name, choice in dyn.choices.items():
        by_hand: list[float] = []
        for column in range(choice.width):
            without = full[name].clone()
            without[0, column] = 0
            by_hand.append(float(dyn.macs(full) - dyn.macs({**full, name: without})) / dyn.static_macs)
        assert column_shares(dyn, choice).tolist() == pytest.approx(by_hand)
        assert min(by_hand) > 0


@pytest.mark.parametrize(
    ("spec", "blocks"),
    [
        ("lcnet(channels=False)", 4),
        ("lcnet(channels=False, bits=True)", 4),
        ("lcnet(layers=False, block=4)", 2),
        ("lcnet(layers=False, block=4)", 1),
    ],
)
def test_calibration_makes_switches_cheaper(spec: str, blocks: int) -> None:
    dyn = gated(spec, blocks)
    shares = {name: column_shares(dyn, dyn.choices[name]) for name in dyn.gated}
    before, start = snapshot(dyn), mean_share(dyn)
    target = 0.85 * start
    found = calibrate(dyn, samples(), target)
    assert found.before == pytest.approx(start)
    assert found.within
    assert found.alpha > 0
    assert mean_share(dyn) == pytest.approx(found.reached, rel=1e-6)
    assert found.reached == pytest.approx(target, rel=0.02)
    for name, value in snapshot(dyn).items():
        choice = name.removeprefix("dyn.gates.").removesuffix(".head.bias")
        price = found.alpha * shares[choice].float() if choice in shares else 0
        torch.testing.assert_close(value, before[name] - price)


def test_gains_are_not_scaled_up_to_spend_what_is_left() -> None:
    dyn = gated()
    before = snapshot(dyn)
    found = calibrate(dyn, samples(), 1.0)
    assert not found.within
    moved = [float((value - before[name]).max()) for name, value in snapshot(dyn).items()]
    assert 0 < max(moved) <= 0.25 + 1e-6


def test_gains_that_cost_what_they_should_stay_as_they_are() -> None:
    dyn = gated()
    before = snapshot(dyn)
    assert calibrate(dyn, samples(), 1.015 * mean_share(dyn)).alpha == 0
    assert all(torch.equal(value, before[name]) for name, value in snapshot(dyn).items())


# -- diagnostics ------------------------------------------------------------------------------------


def test_many_gates_that_say_the_same_are_one_line() -> None:
    names = [f"layer.{i}" for i in range(16)]
    choices = {name: gains(name, 1) for name in names} | {"channels.a": gains("channels.a", 4)}
    route = {name: torch.full((40, 1), float(i % 2)) for i, name in enumerate(names)}
    for name in names[:4]:
        route[name] = torch.tensor([0.0, 0.3]).repeat(20)[:, None]
    route["channels.a"] = torch.tensor([[0.0, 0.1, 0.0, 1.0], [0.2, 0.0, 0.3, 1.0]]).repeat(20, 1)
    (text,) = summarize([route], choices).warnings()
    assert "12 of 16 'layer' gates are the same for all 40 samples (6 always on, 6 always off)" in text


def test_wide_choices_are_counted_and_written() -> None:
    generator = torch.Generator().manual_seed(0)
    wide = gains("channels", 20_003)
    rows = torch.randint(2, (30, wide.width), generator=generator) * 0.7
    rows[:, 5] = 0
    found = summarize([{"channels": rows[:10]}, {"channels": rows[10:]}], {"channels": wide})
    assert found.choices["channels"].columns == tuple((rows > 0).double().mean(0).tolist())
    assert (found.unique, found.possible, found.entropy) == (30, COUNTABLE, pytest.approx(math.log(30)))
    assert json.loads(json.dumps(asdict(found)))["possible"] == COUNTABLE
    assert found.warnings() == ()


# -- the recipe -------------------------------------------------------------------------------------


def test_lcnet_is_gates_and_then_all() -> None:
    recipe = recipes.lcnet(target=0.4, gate_epochs=2, joint_epochs=7, ramp=0.3, quiet=0.25)
    assert (recipe.name, recipe.method, recipe.target) == ("lcnet", "lcnet", 0.4)
    first, second = recipe.phases
    assert (first.trains, first.epochs, first.frozen_norms, first.recalibrate) == ("gates", 2, True, False)
    assert (second.trains, second.epochs, second.frozen_norms, second.recalibrate) == ("all", 7, False, True)
    assert second.average is None
    costs = [Budget(0.7, ramp=0.3), Budget(0.4, ramp=0.3, start=0.7)]
    for phase, cost in zip((first, second), costs, strict=True):
        (turn,) = phase.turns
        assert turn.policy(Clock(0, 1, 0)) == Learned(noise=True)
        assert turn.policy(Clock(74, 100, 0)) == Learned(noise=True)
        assert turn.policy(Clock(75, 100, 0)) == Learned(noise=phase is first)
        assert dict(turn.terms) == {"task": TaskLoss(), "budget": cost}


def test_terms_of_lcnet() -> None:
    def flipped(batch: Batch) -> Batch:
        return batch

    settings: dict[str, Any] = {"distillation": 0.5, "rates": 0.7, "shaping": 0.1, "consistency": 0.2}
    recipe = recipes.lcnet(target=None, view=flipped, noise=False, tau=0.5, **settings)
    (turn,) = recipe.phases[1].turns
    assert turn.policy(Clock(0, 1, 0)) == Learned(0.5)
    assert turn.view is flipped
    assert list(turn.terms.values()) == [
        TaskLoss(),
        Distillation(weight=0.5),
        RateTargets(0.7),
        BatchShaping(weight=0.1),
        RouteConsistency(0.2),
    ]
    assert recipe.phases[1].average == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": 1.5}, r"\(0, 1\], got 1.5"),
        ({"tau": 0.0}, "tau=0.0"),
        ({"distillation": -1.0}, "distillation=-1.0"),
        ({"shaping": -1.0}, "shaping=-1.0"),
        ({"consistency": 0.1}, "no view is given"),
        ({"rates": 2.0}, "all: 2.0"),
        ({"ramp": 2.0}, "ramp"),
        ({"quiet": 1.5}, "quiet=1.5"),
        ({"gate_epochs": 0}, "at least one epoch"),
    ],
)
def test_bad_settings_of_lcnet(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(dc.SpecError, match=message):
        recipes.lcnet(**settings)


def discs(count: int, seed: int) -> TensorDataset:
    """Points [N, 2], inside or outside of a circle that half of them are in: near its edge they are hard."""
    x = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x.norm(dim=1) < 1.18).long())


def jittered(batch: Batch) -> Batch:
    return replace(batch, args=(batch.args[0] + 0.05 * torch.randn_like(batch.args[0]),))


@pytest.mark.filterwarnings("ignore::dyncompile.errors.DyncompileWarning")
@pytest.mark.parametrize(
    ("spec", "settings"),
    [
        ("lcnet(channels=False)", {"distillation": 0.5}),
        ("lcnet(channels=False, bits=True)", {"consistency": 0.5, "view": jittered}),
        ("lcnet(block=8)", {"shaping": 0.05}),
    ],
)
def test_lcnet_trains_layers_and_channels_to_its_target(spec: str, settings: dict[str, Any]) -> None:
    dyn = copy.deepcopy(_made(spec, 4))
    recipe = recipes.lcnet(
        target=0.6, gate_epochs=4, joint_epochs=16, base=Optimization("adamw", 1e-2), **settings
    )
    history = fit(dyn, recipe, discs(512, 0), discs(300, 1), batch_size=32, progress=False)
    shares = [step.macs for step in history.steps if step.phase == "gates"]
    assert sum(shares[-16:]) / 16 == pytest.approx(0.8, rel=0.15)
    assert history.calibration is not None
    assert history.calibration["reached"] == pytest.approx(0.6, rel=0.06)
    x, y = discs(400, 2).tensors
    with torch.no_grad():
        record = dyn.eval().record(x, policy=dc.Learned())
    assert float((record.output.argmax(1) == y).float().mean()) > 0.8
    share = float((dyn.macs(record.route).mean() + dyn.decision_macs) / dyn.static_macs)
    assert share == pytest.approx(0.6, rel=0.15)


def test_a_target_below_what_skipping_all_costs_is_refused_before_training() -> None:
    dyn = copy.deepcopy(_made("lcnet(channels=False)", 4))
    nothing = {name: torch.zeros(1, choice.width) for name, choice in dyn.choices.items()}
    least = float(dyn.macs(nothing)[0] + dyn.decision_macs) / dyn.static_macs
    before, asked = snapshot(dyn), []

    def watch(update: object) -> None:
        asked.append(update)

    with pytest.raises(dc.SpecError, match=f"the target of {least / 2:.1%} .*smallest route's {least:.1%}"):
        fit(dyn, recipes.lcnet(target=least / 2), discs(64, 0), discs(64, 1), progress=watch)
    assert not asked
    assert all(torch.equal(value, before[name]) for name, value in snapshot(dyn).items())


def test_the_teacher_of_consistency_sees_the_samples_as_loaded() -> None:
    dyn = gated()
    loaded: list[Tensor] = []
    found: list[tuple[Tensor, Tensor]] = []

    def view(batch: Batch) -> Batch:
        loaded.append(batch.args[0])
        return jittered(batch)

    def compared(moment: Moment) -> Tensor:
        term = RouteConsistency()(moment)
        with torch.no_grad():
            ours, theirs = (dyn.record(x, policy=Learned()) for x in (moment.batch.args[0], loaded[-1]))
        apart = [(ours.route[n] - theirs.route[n]).square().mean() for n in dyn.gated]
        found.append((term.detach(), torch.stack(apart).mean()))
        return term

    turn = Turn(lambda clock: Learned(), {"same": compared}, view)
    gates = Phase("gates", (turn,), 1, trains="gates", frozen_norms=True)
    fit(dyn, Recipe("test", (gates,)), discs(64, 0), batch_size=16, progress=False)
    assert len(found) > 1
    assert all(float(term) > 1e-5 for term, _ in found)
    for term, expected in found:
        torch.testing.assert_close(term, expected, rtol=1e-3, atol=1e-7)
