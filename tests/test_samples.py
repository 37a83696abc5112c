"""Where samples of a batch meet behind a decision, `explain` says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import dyncompile as dc

Run = Callable[[Tensor], Tensor]


class Net(nn.Module):
    """Two branches; something happens to what they give."""

    def __init__(self, run: Run, *, before: bool = False) -> None:
        super().__init__()
        self.run, self.before = run, before
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.run(x) if self.before else x)
        for branch in self.branches:
            x = x + branch(x)
        return self.head(x.mean((2, 3)) if self.before else self.run(x.mean((2, 3))))


MEETING: dict[str, Run] = {
    "mean": lambda x: x - x.mean(0, keepdim=True),
    "std": lambda x: x * x.std(0, unbiased=False).mean(),
    "matmul": lambda x: (x @ x.T).softmax(1) @ x,
    "softmax": lambda x: x.softmax(0),
    "flip": lambda x: x + x.flip(0),
    "cumsum": lambda x: x.cumsum(0),
    "batch_norm": lambda x: nn.functional.batch_norm(x, None, None, training=True),
}


@pytest.mark.parametrize("method", ["dsnet(divisor=1, minimum=1)", "lcnet", "exits"])
@pytest.mark.parametrize("name", MEETING)
def test_samples_that_meet_are_told(name: str, method: str) -> None:
    dyn = dc.dynamize(Net(MEETING[name]).eval(), method, torch.randn(4, 3, 6, 6))
    said = [note for note in dyn.program.notes if note.startswith(f"{name} lets samples meet")]
    assert len(said) == 1
    assert "self.run(x.mean((2, 3)))" in said[0]
    assert f"{name} lets samples meet" in str(dyn.explain())


def test_nothing_is_told_where_none_meet() -> None:
    """Or where they meet before anything is decided; sizes are decided before all."""
    x = torch.randn(4, 3, 6, 6)
    apart: Run = lambda x: x.softmax(1) * x.new_ones(1) + x.flip(1)  # noqa: E731
    assert not dc.dynamize(Net(apart).eval(), "lcnet", x).program.notes
    net = Net(MEETING["mean"], before=True).eval()
    assert not dc.dynamize(net, "lcnet", x).program.notes
    assert len(dc.dynamize(net, "resolution(sizes=(4, 6))", x).program.notes) == 1
