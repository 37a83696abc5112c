"""What graphs do not have of their source is noted."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dyncompile as dc
from tests.support import same


class Partly(nn.Module):
    """A backbone whose statistics and dropout somebody may want to hold still."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.5))
        self.inner, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.backbone(x).relu()
        return self.head(F.relu(y + self.inner(y)).mean((2, 3)))


class Held(Partly):
    """Holds it still for good."""

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self.backbone.eval()
        return self


class Drawing(Partly):
    """Leaves out a layer at random, by a generator that torch does not know."""

    def __init__(self, numpy: bool) -> None:
        super().__init__()
        self.numpy = numpy

    def forward(self, x: Tensor) -> Tensor:
        drawn = np.random.rand() if self.numpy else random.random()
        return super().forward(x) * (2 if self.training and drawn < 0.5 else 1)


def given(net: nn.Module) -> tuple[dc.DynamicModel, Tensor]:
    x = torch.randn(4, 3, 8, 8)
    return dc.dynamize(net, "lcnet", x), x


def test_parts_in_evaluation_mode_are_named() -> None:
    net = Partly().train()
    net.backbone.eval()
    dyn, x = given(net)
    assert [note for note in dyn.program.notes if "is: backbone; to keep" in note]
    assert "is: backbone; to keep" in str(dyn.explain())
    dc.verify(dyn, net, x)


def test_models_in_one_mode_have_no_note() -> None:
    for net in (Partly().eval(), Partly().train()):
        assert given(net)[0].program.notes == ()


def test_what_the_source_holds_still_itself_stays_so() -> None:
    net = Held().train()
    dyn, x = given(net)
    assert dyn.program.notes == ()
    assert same(net(x), dyn.run(x, policy=dc.Full())[0])
    dc.verify(dyn, net, x)


@pytest.mark.parametrize(("numpy", "named"), [(False, "Python's `random`"), (True, "NumPy's `np.random`")])
def test_draws_of_other_generators_are_named(numpy: bool, named: str) -> None:
    notes = given(Drawing(numpy))[0].program.notes
    assert [note.split(":")[0] for note in notes] == [
        f"forward draws from {named} in train mode",
        f"forward draws from {named} in eval mode",
    ]
