"""Recipes as data: phases, turns, terms; bad arguments; and short runs that show that they work together."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import dyncompile as dc
from dyncompile.train import Batch, Clock, Optimization, Recipe, Turn, fit, recipes
from dyncompile.train.budget import Budget, RatioBudget
from dyncompile.train.objectives import Consistency, Distillation, TaskLoss
from dyncompile.train.recipes import parts
from dyncompile.train.sparsification import ExpectedLoss, Sparsification

NOW = Clock(3, 10, 42)


def policies(turns: tuple[Turn, ...]) -> list[Any]:
    return [turn.policy(NOW) for turn in turns]


def terms(turn: Turn) -> list[Any]:
    return list(turn.terms.values())


# -- structure --------------------------------------------------------------------------------------


def test_dsnet_is_a_supernet_and_then_gates() -> None:
    recipe = recipes.dsnet(target=0.4, supernet_epochs=7, gate_epochs=2)
    assert (recipe.name, recipe.method, recipe.target) == ("dsnet", "dsnet", 0.4)
    first, second = recipe.phases
    assert (first.trains, first.epochs, first.recalibrate, first.average) == ("base", 7, True, 0.997)
    assert (second.trains, second.epochs, second.frozen_norms, second.average) == ("gates", 2, True, None)
    (turn,) = second.turns
    assert turn.policy(NOW) == dc.Learned(1.0, hard=True, noise=True)
    assert terms(turn) == [TaskLoss(), Sparsification("try_best"), Budget(0.4)]


def test_sandwich_runs_largest_random_smallest() -> None:
    turns = parts.sandwich(random_widths=2, smoothing=0.1)
    largest, one, two, smallest = policies(turns)
    assert (largest, smallest) == (dc.Full(), dc.Smallest())
    assert isinstance(one, dc.Sampled)
    assert isinstance(two, dc.Sampled)
    assert one.seed != two.seed
    assert [terms(turn) for turn in turns] == [[TaskLoss(smoothing=0.1)], *[[Distillation()]] * 3]


def test_draws_differ_between_steps_and_repeat_for_the_same_step() -> None:
    draws = [parts.Draw(i)(Clock(0, 9, seed)) for i in range(3) for seed in range(40, 44)]
    assert len(set(draws)) == len(draws)
    assert parts.Draw(1)(NOW) == parts.Draw(1)(Clock(8, 9, NOW.seed))


def test_an_ensemble_teaches_the_smallest_by_the_same_draws() -> None:
    turns = parts.sandwich(teacher="ensemble")
    (last,) = terms(turns[-1])
    assert [draw(NOW) for draw in last.others] == policies(turns)[1:3]
    assert terms(turns[1]) == [Distillation()]


def test_without_a_teacher_all_learn_from_labels() -> None:
    assert all(terms(turn) == [TaskLoss()] for turn in parts.sandwich(teacher="none"))


def test_labels_are_learned_from_beside_the_teacher() -> None:
    largest, *others = recipes.dsnet(random_widths=1, labels=0.5).phases[0].turns
    assert terms(largest) == [TaskLoss()]
    assert [terms(turn) for turn in others] == [[Distillation(), TaskLoss(0.5)]] * 2


def test_a_view_is_for_all_but_the_largest() -> None:
    def flipped(batch: Batch) -> Batch:
        return batch

    turns = parts.sandwich(view=flipped)
    assert [turn.view for turn in turns] == [None, flipped, flipped, flipped]
    assert terms(turns[1]) == [Consistency()]


def test_mixed_sampling_draws_per_sample() -> None:
    *_, mixed, smallest = policies(parts.sandwich(random_widths=1, mixed=True))
    assert smallest == dc.Smallest()
    assert mixed.per_sample


def test_terms_of_the_gate_phase() -> None:
    def found(**settings: Any) -> list[Any]:
        return terms(parts.gate_phase(epochs=1, **settings).turns[0])

    assert found(target=0.5, supervision="expected") == [TaskLoss(), ExpectedLoss(), Budget(0.5)]
    assert found(target=None, supervision="none") == [TaskLoss()]
    assert found(target=0.5, budget=RatioBudget(), supervision="oracle") == [
        TaskLoss(),
        Sparsification("oracle"),
        RatioBudget(),
    ]


def test_supernet_serves_any_method_and_has_no_target() -> None:
    recipe = recipes.supernet(epochs=2, base=Optimization("sgd", 0.1), clip=1.0, average=None)
    assert (recipe.method, recipe.target, len(recipe.phases)) == ("", None, 1)
    assert recipe.phases[0].base == Optimization("sgd", 0.1)
    assert (recipe.phases[0].clip, recipe.phases[0].average) == (1.0, None)


def test_recipes_are_functions_found_by_name() -> None:
    assert {"dsnet", "supernet"} <= set(dir(recipes))
    assert all(callable(getattr(recipes, name)) for name in dir(recipes))
    name = "dsnett"
    with pytest.raises(AttributeError, match=r"no recipe 'dsnett'; recipes are: .*dsnet"):
        getattr(recipes, name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": 1.5}, r"\(0, 1\], got 1.5"),
        ({"target": 0.0}, r"\(0, 1\], got 0.0"),
        ({"teacher": "ema"}, "bootstrap, ensemble, none"),
        ({"sparsification": "best"}, "try_best, give_up, oracle, expected, worth, none"),
        ({"random_widths": -1}, "got -1"),
        ({"labels": -1.0}, "got 2 and -1"),
        ({"teacher": "none", "labels": 1.0}, "without a teacher"),
        ({"teacher": "ensemble", "random_widths": 0}, "ensemble"),
        ({"teacher": "ensemble", "view": lambda batch: batch}, "ensemble"),
        ({"tau": 0.0}, "tau=0.0"),
        ({"supernet_epochs": 0}, "at least one epoch"),
        ({"gate_epochs": 0}, "at least one epoch"),
        ({"smoothing": 1.0}, "got 1.0"),
        ({"temperature": 0.0}, "got 0.0"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(dc.SpecError, match=message):
        recipes.dsnet(**settings)


# -- short runs -------------------------------------------------------------------------------------


def discs(count: int, seed: int) -> TensorDataset:
    """Points [N, 2], inside or outside of a circle that half of them are in: near its edge they are hard."""
    x = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x.norm(dim=1) < 1.18).long())


def trained(recipe: Recipe, spec: str) -> tuple[dc.DynamicModel, Any]:
    torch.manual_seed(0)
    layers = [nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2)]
    dyn = dc.dynamize(nn.Sequential(*layers), spec, torch.randn(2, 2))
    return dyn, fit(dyn, recipe, discs(512, 0), discs(400, 1), progress=False)


def accuracy(dyn: dc.DynamicModel, policy: Any) -> tuple[float, float]:
    x, y = discs(400, 2).tensors
    with torch.no_grad():
        record = dyn.eval().record(x, policy=policy)
    share: Tensor = dyn.macs(record.route).mean() + dyn.decision_macs * policy.reads_gates
    return float((record.output.argmax(1) == y).float().mean()), float(share) / dyn.static_macs


@pytest.mark.filterwarnings("ignore::dyncompile.errors.DyncompileWarning")
@pytest.mark.parametrize("sparsification", ["try_best", "expected"])
def test_dsnet_trains_all_widths_and_meets_its_target(sparsification: Any) -> None:
    recipe = recipes.dsnet(
        target=0.6,
        supernet_epochs=12,
        gate_epochs=6,
        sparsification=sparsification,
        base=Optimization("adamw", 1e-2),
        average=0.9,
    )
    dyn, history = trained(recipe, "dsnet(divisor=1, minimum=1, hidden=4)")
    assert history.calibration["within"]
    assert history.calibration["reached"] == pytest.approx(0.6, rel=0.02)
    for column in range(4):
        assert accuracy(dyn, dc.Forced(dyn.route(column)))[0] > 0.8
    right, share = accuracy(dyn, dc.Learned())
    assert right > 0.8
    assert share == pytest.approx(0.6, rel=0.15)
    assert all(math.isfinite(value) for step in history.steps for value in step.terms.values())


def test_views_reach_all_turns_but_the_largest() -> None:
    seen: list[Tensor] = []

    def noisy(batch: Batch) -> Batch:
        seen.append(batch.args[0] + 0.1 * torch.randn_like(batch.args[0]))
        return Batch((seen[-1],), batch.kwargs, batch.target)

    layers = [nn.Linear(2, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 2)]
    dyn = dc.dynamize(nn.Sequential(*layers), "dsnet(divisor=1, minimum=1, gate=False)", torch.randn(2, 2))
    recipe = recipes.supernet(epochs=4, view=noisy, base=Optimization("adamw", 1e-2), average=0.5)
    history = fit(dyn, recipe, discs(256, 0), progress=False)
    assert len(seen) == 3 * len(history.steps)
    assert history.steps[-1].terms["largest"] < history.steps[0].terms["largest"]


def test_supernet_trains_what_has_no_gates() -> None:
    recipe = recipes.supernet(epochs=12, base=Optimization("adamw", 1e-2), average=None, mixed=True)
    dyn, _ = trained(recipe, "dsnet(divisor=1, minimum=1, gate=False)")
    for column in range(4):
        assert accuracy(dyn, dc.Forced(dyn.route(column)))[0] > 0.8
