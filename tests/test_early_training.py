"""Recipes for previews, bases and exits on a toy; policies and terms of theirs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import dyncompile as dc
from dyncompile.policies import Forced
from dyncompile.program import Choice, Domain
from dyncompile.train import Clock, Optimization
from dyncompile.train.early import Staying, WarmUp

FAST = Optimization("adamw", rate=2e-2)


class Toy(nn.Module):
    """Images [B, 2, 8, 8]: two convolutions, a classifier of 3."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.two(F.relu(self.norm(self.one(x))))).mean((2, 3)))


def data(count: int = 96) -> TensorDataset:
    """The class is how the two channels are related."""
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (count,), generator=random)
    x = torch.randn(count, 2, 8, 8, generator=random)
    x[:, 1] = 0.3 * x[:, 1] + x[:, 0] * (labels - 1.0)[:, None, None]
    return TensorDataset(x, labels)


def made(spec: str) -> dc.DynamicModel:
    torch.manual_seed(0)
    return dc.dynamize(Toy(), spec, torch.zeros(2, 2, 8, 8))


def test_basisnet_trains_both_stages_and_its_bases() -> None:
    dyn = made("basisnet(preview=stage, at=0.2, overhead=1.0, bases=3)")
    teacher = Toy()
    recipe = dc.recipes.basisnet(
        epochs=12, teacher=teacher, distillation=0.1, dropout=0.1, warmup=0.25, base=FAST, gates=FAST
    )
    threshold = dyn.get_buffer("dyn.exits.basis.exit.threshold").clone()
    history = dc.fit(dyn, recipe, data(), data(), batch_size=32, seed=0)
    first, last = history.steps[0].terms, history.steps[-1].terms
    assert set(first) == {"specialist", "preview", "teacher"}
    assert last["specialist"] < 0.6 * first["specialist"]
    assert last["preview"] < first["preview"]
    bases = dyn.get_parameter("dyn.bases.two.weight")
    assert bool(bases.any())
    assert not torch.allclose(bases[0], bases[1])
    assert torch.equal(dyn.get_buffer("dyn.exits.basis.exit.threshold"), threshold)
    x, labels = data().tensors
    found = dc.calibrate_exit(dyn, [(x, labels)], accuracy_drop=0.02)
    assert found.accuracy >= found.final_accuracy - 0.02
    assert 0 <= found.left["basis.exit"] <= 1
    out, route = dyn.eval().run(x, policy=dc.Learned())
    assert float((out.argmax(1) == labels).double().mean()) == pytest.approx(found.accuracy)
    assert float(dyn.spent(route).mean()) / dyn.static_macs == pytest.approx(found.share)


def test_exits_learn_together() -> None:
    dyn = made("exits(at=(0.3, 0.99))")
    history = dc.fit(
        dyn, dc.recipes.exits(epochs=10, distillation=0.5, base=FAST), data(), batch_size=32, seed=0
    )
    first, last = history.steps[0].terms, history.steps[-1].terms
    assert set(first) == {"task", "heads", "final"}
    assert last["task"] < 0.8 * first["task"]
    assert last["heads"] < first["heads"]


def test_recipes_check_their_settings_and_the_model() -> None:
    with pytest.raises(dc.SpecError, match="weights are at least 0"):
        dc.recipes.basisnet(preview_weight=-1)
    with pytest.raises(dc.SpecError, match="a warm-up is a part"):
        dc.recipes.basisnet(warmup=2)
    with pytest.raises(dc.SpecError, match="temperature is positive"):
        dc.recipes.exits(temperature=0)
    with pytest.raises(dc.SpecError, match="is for 'basisnet'"):
        dc.fit(made("exits"), dc.recipes.basisnet(), data())


def test_coefficients_start_uniform_and_bases_drop_out_together() -> None:
    choice = Choice("mix", Domain.MIXTURE, (0.0,) * 6, (0.0,) * 6, block=3)
    rows = torch.rand(400, 6)
    steps = [WarmUp(0.5)(Clock(step, 100, 0)) for step in (0, 25, 50, 99)]
    assert [policy.uniform for policy in steps] == [1, 0.5, 0, 0]
    torch.testing.assert_close(steps[0].decide(choice, 400, rows), torch.full((400, 6), 1 / 3))
    torch.testing.assert_close(steps[1].decide(choice, 400, rows), 1 / 6 + rows / 2)
    assert torch.equal(steps[3].decide(choice, 400, rows), rows)
    dropped = Staying(dropout=0.25, seed=1).decide(choice, 400, rows).view(400, 2, 3) == 0
    assert torch.equal(dropped[:, 0], dropped[:, 1])
    assert float(dropped.float().mean()) == pytest.approx(0.25, abs=0.05)
    exit = Choice("exit", Domain.EXIT, (0.0,), (1.0,))
    assert not Staying().decide(exit, 3, torch.ones(3, 1)).any()


def test_early_terms_need_early_predictions() -> None:
    dyn = made("exits")
    recipe = dc.recipes.exits(epochs=1)
    turn = recipe.phases[0].turns[0]
    record = dyn.record(torch.zeros(2, 2, 8, 8), policy=Forced(), execution="sparse")
    assert not record.early
    moment = dc.train.Moment(dyn, None, record, F.cross_entropy, Clock(0, 1, 0), lambda p: record, {})  # pyright: ignore
    with pytest.raises(dc.SpecError, match="no early prediction"):
        turn.terms["heads"](moment)
