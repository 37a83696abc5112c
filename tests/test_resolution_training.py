"""Training at several resolutions: the recipe on a task of coarse and fine images."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import dyncompile as dc
from dyncompile.deploy import specialize
from dyncompile.policies import Forced, Learned
from dyncompile.train import fit, recipes
from dyncompile.train.budget import HingeBudget
from dyncompile.train.optim import is_gate, parameter_groups, trainable
from dyncompile.train.phase import Optimization
from dyncompile.train.recipes.resolution import Column

# The first epoch with the predictor may still leave all images at one size.
pytestmark = pytest.mark.filterwarnings("ignore::dyncompile.errors.DyncompileWarning")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.body, self.body_norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return self.head(F.relu(self.body_norm(self.body(x))).amax((2, 3)))


def samples(count: int, seed: int) -> TensorDataset:
    """Coarse blobs or a fine checkerboard, each in two classes: the sign, or the direction of its lines."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=random)
    fine = torch.randint(2, (count,), generator=random).bool()
    grid = torch.arange(8) % 2 * 2.0 - 1
    lines = torch.where(labels[:, None, None].bool(), grid[None, :, None], grid[None, None, :])
    blobs = (labels * 2.0 - 1)[:, None, None].expand(-1, 8, 8) + 2.0
    images = torch.where(fine[:, None, None], lines.expand(count, 8, 8), blobs)
    noise = 0.1 * torch.randn(count, 8, 8, generator=random)
    return TensorDataset((images + noise)[:, None], labels)


@cache
def trained() -> tuple[dc.DynamicModel, list[float]]:
    torch.manual_seed(0)
    dyn = dc.dynamize(Net(), "resolution(sizes=(4,), confidence=0.6)", torch.randn(2, 1, 8, 8))
    gates, base = Optimization("adamw", rate=2e-2), Optimization("adamw", rate=5e-3)
    recipe = recipes.resolution(
        target=0.63, sizes=2, pretrain_epochs=6, joint_epochs=10, base=base, gates=gates
    )
    history = fit(dyn, recipe, samples(384, 1), samples(128, 2), batch_size=32, progress=False)
    return dyn.eval(), [record.loss for record in history.steps if record.phase == "pretrain"]


@torch.no_grad()
def accuracy(dyn: dc.DynamicModel, policy: dc.Policy, data: TensorDataset) -> float:
    x, y = data.tensors
    return float((dyn.eval().run(x, policy=policy)[0].argmax(1) == y).float().mean())


def test_the_recipe_meets_its_budget_and_every_size_learns() -> None:
    dyn, losses = trained()
    data = samples(256, 3)
    assert sum(losses[-5:]) < sum(losses[:5])
    with torch.no_grad():
        record = dyn.record(data.tensors[0], policy=Learned())
    share = float(dyn.macs(record.route).mean() + dyn.decision_macs) / dyn.static_macs
    assert share == pytest.approx(0.63, abs=0.1)  # two kinds of images: no price parts one kind
    assert accuracy(dyn, dc.Full(), data) > 0.9
    assert accuracy(dyn, Learned(), data) > 0.8
    assert accuracy(dyn, dc.Smallest(), data) > 0.8


def test_norms_of_the_sizes_drift_apart_and_weights_do_not() -> None:
    dyn, _ = trained()
    state = dyn.state_dict()
    assert not torch.allclose(state["dyn.sizes.4.norm.weight"], state["norm.weight"])
    assert not torch.allclose(state["dyn.sizes.4.norm.running_mean"], state["norm.running_mean"])
    assert not any(name.startswith("dyn.sizes") and "stem" in name for name in state)
    x = samples(4, 5).tensors[0]
    static = specialize(dyn, dyn.route(0))
    with torch.no_grad():
        assert torch.allclose(static(x), dyn.run(x, policy=dc.Smallest())[0], atol=1e-5)


def test_the_predictor_has_its_own_rate_and_no_decay() -> None:
    dyn, _ = trained()
    first, second = recipes.resolution(sizes=2).phases
    assert not any(is_gate(name) for name in trainable(dyn, first))
    groups = parameter_groups(trainable(dyn, second), second)
    (gates,) = [group for group in groups if group["owner"] == "gates"]
    assert gates["weight_decay"] == 0
    assert len(gates["params"]) == sum(is_gate(name) for name, _ in dyn.named_parameters())


def test_pretraining_sums_the_losses_of_all_sizes() -> None:
    first, second = recipes.resolution(sizes=3, choice="size").phases
    routes = [turn.policy.__call__(None).route["size"] for turn in first.turns]  # pyright: ignore
    assert [int(route.argmax()) for route in routes] == [2, 1, 0]
    assert list(second.turns[0].terms) == ["task", "budget"]
    assert isinstance(Column("size", 1, 3)(None), Forced)  # pyright: ignore


def test_the_published_cost_term_is_a_hinge() -> None:
    recipe = recipes.resolution(target=0.5, budget=HingeBudget(0.5), pretrain_epochs=0)
    (joint,) = recipe.phases
    assert isinstance(joint.turns[0].terms["budget"], HingeBudget)


@pytest.mark.parametrize("wrong", [{"sizes": 1}, {"tau": 0.0}, {"target": 1.5}, {"pretrain_epochs": -1}])
def test_bad_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(dc.SpecError):
        recipes.resolution(**wrong)  # pyright: ignore


def test_the_predictor_alone_learns_what_sizes_are_worth() -> None:
    recipe = recipes.resolution(pretrain_epochs=0, joint_epochs=0, gate_epochs=2)
    (alone,) = recipe.phases
    assert (alone.trains, list(alone.turns[0].terms)) == ("gates", ["gates"])
    with pytest.raises(dc.SpecError, match="no phase trains the predictor"):
        recipes.resolution(joint_epochs=0)
