"""What tests of training share: small models, data with something to learn, recipes of functions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import dyncompile as dc
from dyncompile.policies import Full, Learned, Policy, Sampled, Smallest
from dyncompile.train import (
    History,
    Moment,
    Objective,
    Optimization,
    Phase,
    Recipe,
    Schedule,
    Turn,
    Update,
    fit,
)

UNGATED = "dsnet(divisor=1, minimum=1, gate=False)"
GATED = "dsnet(divisor=1, minimum=1)"
CLASSES = 4


def conv_source(seed: int = 0) -> nn.Module:
    """Two convolutions with a batch norm and dropout on images [B, 3, 6, 6]."""
    torch.manual_seed(seed)
    first = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2))
    last = (nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*first, *last, nn.Linear(8, CLASSES))


def conv_net(spec: str = UNGATED, seed: int = 0) -> dc.DynamicModel:
    """`conv_source`, dynamic; every call gives a model with tensors of its own."""
    return copy.deepcopy(_dynamic(conv_source, spec, seed))


class _Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.head = nn.Linear(108, 12), nn.LayerNorm(12), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.norm(self.inner(x.flatten(1)))))


def perceptron(spec: str = UNGATED, seed: int = 0) -> dc.DynamicModel:
    """A layer-normalized perceptron on images [B, 3, 6, 6]: what it computes does not depend on the batch."""
    return copy.deepcopy(_dynamic(_perceptron_source, spec, seed))


def _perceptron_source(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return _Perceptron()


@cache
def _dynamic(make: Callable[[int], nn.Module], spec: str, seed: int) -> dc.DynamicModel:
    """Captured once per process."""
    return dc.dynamize(make(seed), spec, torch.randn(2, 3, 6, 6))


def images(count: int = 40, seed: int = 1) -> TensorDataset:
    """Noise whose first channel tells the class by its mean."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    pixels = torch.randn(count, 3, 6, 6, generator=generator)
    pixels[:, 0] += labels[:, None, None]
    return TensorDataset(pixels, labels)


def task(moment: Moment) -> Tensor:
    """The user's loss."""
    return moment.loss(moment.record.output, moment.batch.target)


def distill(moment: Moment) -> Tensor:
    """What the teacher says at full width."""
    return F.cross_entropy(moment.record.output, moment.teacher(Full()).output.softmax(1))


def remembered(moment: Moment) -> Tensor:
    """The task loss over its own running mean: it depends on what was kept between steps."""
    loss = task(moment)
    mean = 0.9 * moment.memory.get("mean", 1.0) + 0.1 * float(loss.detach())
    moment.memory["mean"] = mean
    return loss / mean


def sandwich(first: Objective = remembered, **settings: Any) -> Phase:
    """A supernet phase: widest, random, smallest."""
    turns = (
        Turn(lambda clock: Full(), {"task": first}),
        Turn(lambda clock: Sampled(clock.seed), {"random": distill}),
        Turn(lambda clock: Smallest(), {"smallest": distill}),
    )
    defaults: dict[str, Any] = {"epochs": 2, "base": Optimization(rate=1e-2, decay=1e-2), "average": 0.9}
    return Phase("supernet", turns, **{**defaults, **settings})


def plain(term: Objective = task, policy: Policy | None = None, **settings: Any) -> Phase:
    """One term at full width and nothing else."""
    turn = Turn(lambda clock: policy or Full(), {"task": term})
    return Phase("plain", (turn,), **{"epochs": 2, "base": Optimization(rate=1e-2), **settings})


def gate_phase(**settings: Any) -> Phase:
    """Decision nets alone, with Gumbel noise and a price on MACs."""

    def price(moment: Moment) -> Tensor:
        return moment.dyn.macs(moment.record.route).mean() / moment.dyn.static_macs

    turn = Turn(lambda clock: Learned(noise=True), {"task": task, "macs": price})
    defaults: dict[str, Any] = {"epochs": 1, "trains": "gates", "gates": Optimization(rate=1e-1)}
    return Phase("gates", (turn,), **{**defaults, "frozen_norms": True, **settings})


def recipe(*phases: Phase, **settings: Any) -> Recipe:
    """A recipe for any method."""
    return Recipe("test", phases or (plain(),), **settings)


def two_phases() -> Recipe:
    """A supernet with everything that has a state, then SGD with clipping."""
    second = plain(
        base=Optimization("sgd", rate=5e-2, decay=1e-3),
        schedule=Schedule("step", warmup=0.2, drops=(0.5,)),
        clip=1.0,
    )
    return recipe(sandwich(recalibrate=True, adopt_average=True), second)


class Interrupted(Exception):
    """What a test interrupts training with."""


def stop_after(step: int) -> Any:
    """A progress callback that interrupts training after so many steps of all phases."""
    seen: list[Update] = []

    def watch(update: Update) -> None:
        seen.append(update)
        if len(seen) == step:
            raise Interrupted

    return watch


def run(dyn: dc.DynamicModel, how: Recipe, directory: Path | None = None, **settings: Any) -> History:
    """A silent fit on `images`."""
    defaults: dict[str, Any] = {"batch_size": 8, "progress": False}
    return fit(dyn, how, images(), directory=directory, **{**defaults, **settings})


def state_of(dyn: nn.Module) -> dict[str, Tensor]:
    """A copy of all persistent state."""
    return {name: tensor.detach().clone() for name, tensor in dyn.state_dict().items()}


def same_state(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
