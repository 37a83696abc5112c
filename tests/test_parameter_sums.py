"""Sums among parameters, and kernels that slide over channels: no mask stands for narrow weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dyncompile as dc
from dyncompile.analysis.facts import analyze
from dyncompile.capture import capture
from tests.support import relative

Run = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Two layers whose weights, or what lies between them, a function makes."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        self.stem, self.inner = nn.Linear(6, 16), nn.Linear(16, 24)
        self.left = nn.Parameter(torch.randn(24, 8) * 0.3)
        self.right = nn.Parameter(torch.randn(8, 16) * 0.3)
        self.slide = nn.Conv1d(1, 1, 3, padding=1)
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, self.stem(x).relu())


def low_rank(net: Net, x: Tensor) -> Tensor:
    return net.head(F.linear(x, net.inner.weight + net.left @ net.right).relu())


def equation(net: Net, x: Tensor) -> Tensor:
    return net.head(F.linear(x, torch.einsum("or,ri->oi", net.left, net.right)).relu())


def unit_norm(net: Net, x: Tensor) -> Tensor:
    weight = net.inner.weight
    return net.head(F.linear(x, weight / weight.norm(dim=1, keepdim=True)).relu())


def cosine(net: Net, x: Tensor) -> Tensor:
    features = F.normalize(net.inner(x).relu(), dim=1)
    return F.linear(features, F.normalize(net.head.weight, dim=1))


def normed_state(net: Net, x: Tensor) -> Tensor:
    return net.head(net.inner(x).relu() + net.norm(net.inner.bias))


def attended(net: Net, x: Tensor) -> Tensor:
    """Efficient channel attention (2020)."""
    x = net.inner(x).relu()
    return net.head(x * net.slide(x.unsqueeze(1)).squeeze(1).sigmoid())


CASES = [
    (low_rank, "left[1]", "matmul of parameters"),
    (equation, "left[1]", "einsum of parameters"),
    (unit_norm, "stem.weight[0]", "linalg_vector_norm of parameters"),
    (cosine, "inner.weight[0]", "linalg_vector_norm of parameters"),
    (normed_state, "inner.weight[0]", "layer norm of parameters"),
    (attended, "inner.weight[0]", "convolution"),
]


@pytest.mark.parametrize(("run", "name", "how"), CASES)
def test_what_masks_cannot_leave_out_is_no_choice_of_a_gate(run: Run, name: str, how: str) -> None:
    torch.manual_seed(0)
    net, x = Net(run).eval(), torch.randn(4, 6)
    analysis = analyze(capture(net, (x,)))
    assert [one.how for one in analysis.dims.elastic[name].mixed] == [how]
    for method in ("dsnet(divisor=1, minimum=1, start=0)", "lcnet(layers=False)"):
        assert name not in sites_of(net, method, x)


def sites_of(net: nn.Module, method: str, x: Tensor) -> list[str]:
    """What a method decides on in a network; the contract holds."""
    try:
        dyn = dc.dynamize(net, method, x)
    except dc.NoSiteError:
        return []
    dc.verify(dyn, net, x)
    return [site.name for plan in dyn.plans for site in plan.sites]


@pytest.mark.parametrize("run", [run for run, *_ in CASES])
def test_without_a_gate_they_are_narrowed(run: Run) -> None:
    torch.manual_seed(0)
    net, x = Net(run).eval(), torch.randn(4, 6)
    dyn = dc.dynamize(net, "dsnet(divisor=1, minimum=1, gate=False)", x).eval()
    dc.verify(dyn, net, x)
    route = {"width": torch.eye(4)}
    together = dyn.run(x, policy=dc.Forced(route))[0]
    for row in range(4):
        alone = dc.specialize(dyn, {"width": route["width"][row : row + 1]})
        assert relative(together[row : row + 1], alone(x[row : row + 1])) < 1e-5
