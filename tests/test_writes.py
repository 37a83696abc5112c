"""Networks that write into slices: what is written is the network's own, whoever decides by it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import dyncompile as dc
from dyncompile.verify import count_macs
from tests.support import relative, same

Step = Callable[["Writing", Tensor, nn.Module], Tensor]


class Writing(nn.Module):
    """Two blocks of the same step, each with its own layers."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step
        self.stem, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 5)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(16), nn.Conv2d(16, 24, 1), nn.ReLU(), nn.Conv2d(24, 16, 1))
            for _ in range(2)
        )
        self.part = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layers in self.layers:
            x = self.step(self, x, layers)
        return self.head(x.mean((2, 3)))


def shifted(net: Writing, x: Tensor, layers: nn.Module) -> Tensor:
    """A block of ShiftViT (2022), as released."""
    out = torch.zeros_like(x)
    out[:, :2, :, :-1] = x[:, :2, :, 1:]
    out[:, 2:] = x[:, 2:]
    return out + layers(out)


def convolved(net: Writing, x: Tensor, layers: nn.Module) -> Tensor:
    """A block of FasterNet (2023): a convolution of a part of the channels."""
    out = x.clone()
    out[:, :4] = net.part(x[:, :4])
    return out + layers(out)


def exchanged(net: Writing, x: Tensor, layers: nn.Module) -> Tensor:
    x = x + layers(x)
    x = x.clone()
    x[:, torch.tensor([0, 5])] = x[:, torch.tensor([5, 0])] * 2
    return x


def clamped(net: Writing, x: Tensor, layers: nn.Module) -> Tensor:
    x = x + layers(x)
    x[:, :8].clamp_(min=0)
    return x


def scaled(net: Writing, x: Tensor, layers: nn.Module) -> Tensor:
    added = layers(x)
    added[:, :4].mul_(2)
    return x + added


def slots(net: Writing, x: Tensor, layers: nn.Module) -> Tensor:
    out = x.new_zeros(x.shape)
    out[:, 4:] = (x + layers(x))[:, 4:]
    return out


@pytest.mark.parametrize("method", ["dsnet(divisor=1, minimum=1)", "lcnet", "routing"])
@pytest.mark.parametrize("step", [shifted, convolved, exchanged, clamped, scaled, slots])
def test_what_is_written_into_slices_stays(step: Step, method: str) -> None:
    torch.manual_seed(0)
    net, x = Writing(step).eval(), torch.randn(4, 3, 6, 6)
    if step in (shifted, convolved) and method == "routing":
        with pytest.raises(dc.NoSiteError):
            dc.dynamize(net, method, x)
        return
    dyn = dc.dynamize(net, method, x).eval()
    dc.verify(dyn, net, x)
    with torch.no_grad():
        assert same(dyn.run(x, policy=dc.Full())[0], net(x))
        route = {
            name: torch.tensor([choice.full, choice.smallest] * 2) for name, choice in dyn.choices.items()
        }
        kinds = ("sparse", "dense")
        ways = [dyn.record(x, policy=dc.Forced(route), execution=kind).output for kind in kinds]
    assert relative(*ways) < 1e-5
    assert dyn.static_macs == count_macs(lambda: net(x[:1]))


def test_decisions_read_whole_values() -> None:
    """The value of a write into a slice is that slice: no place for a decision."""
    torch.manual_seed(0)
    dyn = dc.dynamize(Writing(shifted).eval(), "lcnet(channels=False)", torch.randn(2, 3, 6, 6))
    assert [point.shape for point in dyn.facts.points.points] == [(16, 6, 6), (16, 6, 6), (16,)]
