"""Regions of a forward without gradients: what they write into stays what it is, step after step."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import dyncompile as dc
from tests.support import same


class Residual(nn.Module):
    """A network [4, 3, 8, 8] -> [4, 5] with a branch that a pass finds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)

    def features(self, x: Tensor) -> Tensor:
        return self.rest(F.relu(self.stem(x)))

    def rest(self, y: Tensor) -> Tensor:
        return F.relu(y + self.norm(self.inner(y))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class Centering(Residual):
    """A running mean of features, as in self-distillation."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        center = self.get_buffer("center")
        if self.training:
            with torch.no_grad():
                center.mul_(0.9).add_(y.mean(0), alpha=0.1)
        return self.head(y - center)


class Clamping(Residual):
    """A temperature that is kept in bounds, as in CLIP."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(6.0))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.scale.clamp_(0, 4.6)
        return self.head(F.normalize(self.features(x), dim=-1)) * self.scale


class Momentum(Residual):
    """A head that follows another one."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = nn.Linear(8, 5).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        if self.training:
            with torch.no_grad():
                for fast, slow in zip(self.head.parameters(), self.slow.parameters(), strict=True):
                    slow.mul_(0.9).add_(fast, alpha=0.1)
        return self.head(y) + self.slow(y)


class Writing(Residual):
    """Features that are changed in place: gradients pass as if they had not been."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x).sin()
        with torch.no_grad():
            y.mul_(0.5)
        return self.head(y + 1)


class Frozen(Residual):
    """A stem without gradients, and inside of that a part with."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = F.relu(self.stem(x))
            with torch.enable_grad():
                bias = self.head.bias * 2
        return self.head(self.rest(y)) + bias


def spectral() -> nn.Module:
    net = Residual()
    parametrizations.spectral_norm(net.inner)
    return net


MAKERS = (Centering, Clamping, Momentum, Writing, Frozen, spectral)


def train(net: nn.Module, x: Tensor, targets: Tensor) -> list[Tensor]:
    """Losses of three steps of gradient descent."""
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    losses: list[Tensor] = []
    for _ in range(3):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(net.train()(x), targets))
        losses[-1].backward()
        optimizer.step()
    return losses


@pytest.mark.parametrize("make", MAKERS)
def test_checkpoints_need_no_source(make: type[nn.Module], tmp_path: Path) -> None:
    x = torch.randn(4, 3, 8, 8)
    dyn = dc.dynamize(make(), "lcnet", x).eval()
    assert torch.equal(dc.load(dc.save(dyn, tmp_path))(x), dyn(x))


@pytest.mark.parametrize("make", MAKERS)
def test_training_is_bitwise_the_source(make: type[nn.Module]) -> None:
    net, x = make(), torch.randn(4, 3, 8, 8)
    dyn, targets = dc.dynamize(net, "lcnet", x), torch.randint(5, (4,))
    dyn.policy = dc.Full()
    assert same(train(net, x, targets), train(dyn, x, targets))
    found = {**dict(dyn.named_parameters()), **dict(dyn.named_buffers())}
    assert all(t.is_leaf for t in found.values())
    assert same(net.state_dict(), {name: found[name] for name in net.state_dict()})
    assert same(net.eval()(x), copy.deepcopy(dyn).eval()(x))


@pytest.mark.parametrize("make", MAKERS)
def test_the_contract_holds(make: type[nn.Module]) -> None:
    net, x = make(), torch.randn(4, 3, 8, 8)
    dc.verify(dc.dynamize(net, "lcnet", x), net, x)


def test_weights_that_are_only_read_are_known_by_name() -> None:
    dyn = dc.dynamize(Frozen(), "lcnet", torch.randn(4, 3, 8, 8))
    for graph in dyn.program.graphs.values():
        convolutions = [node for node in graph.nodes if "conv2d" in str(node.target)]
        assert [getattr(node.args[1], "op", None) for node in convolutions] == ["get_attr"] * 2
