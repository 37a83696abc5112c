"""Networks that return more in training than in evaluation, as those with auxiliary heads do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dyncompile as dc
from dyncompile.checkpoint import GRAPH
from dyncompile.verify import difference
from tests.support import same


class Outputs(NamedTuple):
    logits: Tensor
    early: Tensor


Wrap = Callable[[Tensor, Callable[[], Tensor]], Any]

WRAPS: dict[str, tuple[Wrap, Wrap]] = {
    "tuple": (lambda y, early: (y, early()), lambda y, early: y),
    "named": (lambda y, early: Outputs(y, early()), lambda y, early: y),
    "fewer": (lambda y, early: y, lambda y, early: {"logits": y, "shares": [y.softmax(1)]}),
    "as many": (lambda y, early: {"logits": y, "early": early()}, lambda y, early: (y, early())),
}
"""What training returns, and what evaluation does."""


class Auxiliary(nn.Module):
    """[B, 3, 8, 8] -> class scores, and others of an early head."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head, self.early = nn.Linear(8, 5), nn.Linear(8, 5)
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        stem = F.relu(self.stem(x))
        y = F.relu(stem + self.inner(stem))
        wrap = WRAPS[self.kind][not self.training]
        return wrap(self.head(y.mean((2, 3))), lambda: self.early(stem.mean((2, 3))))


@pytest.mark.parametrize("kind", WRAPS)
def test_each_mode_returns_what_the_sources_does(kind: str) -> None:
    net, x = Auxiliary(kind), torch.randn(4, 3, 8, 8)
    dyn = dc.dynamize(net, "lcnet", x)
    for training in (True, False):
        expected, actual = net.train(training)(x), dyn.train(training).run(x, policy=dc.Full())[0]
        assert type(actual) is type(expected)
        assert difference(expected, actual) == 0
    dc.verify(dyn, net, x)
    with torch.no_grad():
        assert difference(net(x), dc.specialize(dyn, dyn.route({"layer.inner": 0}, 4))(x)) < float("inf")


@pytest.mark.parametrize("kind", WRAPS)
def test_a_checkpoint_keeps_both(kind: str, tmp_path: Path) -> None:
    x = torch.randn(4, 3, 8, 8)
    dyn = dc.dynamize(Auxiliary(kind), "lcnet", x)
    loaded = dc.load(dc.save(dyn, tmp_path))
    for training in (True, False):
        expected, actual = (m.train(training).run(x, policy=dc.Full())[0] for m in (dyn, loaded))
        assert difference(expected, actual) == 0


def test_a_checkpoint_of_one_structure_has_no_other(tmp_path: Path) -> None:
    """As those have it that were written before there were two."""
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(2, 4)
    dyn = dc.dynamize(net, "dsnet(gate=False, divisor=1, minimum=1)", x)
    described = json.loads((dc.save(dyn, tmp_path) / GRAPH).read_text())
    assert "train_output" not in described["call"]
    assert same(dc.load(tmp_path).train().run(x, policy=dc.Full())[0], net(x))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda y: (y, y), lambda y: [y, y]),
        (lambda y: (y, y), lambda y: {"logits": y, "early": y}),
        (lambda y: {"logits": y}, lambda y: {"scores": y}),
        (lambda y: (y, (y, y)), lambda y: ((y, y), y)),
    ],
)
def test_other_structures_of_the_same_tensors_differ(one: Any, other: Any) -> None:
    y = torch.ones(2)
    assert difference(one(y), other(y)) == float("inf")
    assert difference(one(y), one(y)) == difference(other(y), other(y)) == 0


def test_named_fields_and_a_dict_are_one_structure() -> None:
    """What has named fields comes from a checkpoint as a dict."""
    y = torch.ones(2)
    assert difference(Outputs(y, y), {"logits": y, "early": y}) == 0
