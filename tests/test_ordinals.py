"""Rows part nowhere where a network counts them, nor within a region of another precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import dyncompile as dc
from dyncompile.analysis.ordinals import numbered, ordinals
from dyncompile.capture import capture


class _Block(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


class Counted(nn.Module):
    """Rows are numbered before a decision, and read by their numbers behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 16), nn.Linear(16, 5)
        self.one, self.two = _Block(), _Block()

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.arange(x.shape[0]).unsqueeze(1)
        h = self.embed(x)
        near = h.norm(dim=-1).topk(3, dim=1)[1]
        h = h + self.one(h)
        read = h[rows, near]
        read = read + self.two(read[rows, near % 3])
        return self.head(read.mean(1))


class Flattened(Counted):
    """As point clouds are read: numbers of rows are mixed with what was found in them."""

    def forward(self, x: Tensor) -> Tensor:
        batch, points, _ = x.shape
        near = torch.cdist(x, x).topk(4, largest=False)[1]
        at = (near + torch.arange(batch).view(-1, 1, 1) * points).view(-1)
        h = self.embed(x)
        h = h + self.one(h)
        read = h.reshape(batch * points, -1)[at].view(batch, points, 4, -1).amax(2)
        return self.head((h + self.two(read)).mean(1))


X = torch.randn(6, 7, 6)


@pytest.mark.parametrize("method", ["dsnet(divisor=1, minimum=1)", "lcnet", "exits"])
def test_numbers_of_rows_are_counted_anew_in_every_group(method: str) -> None:
    source = Counted().eval()
    dyn = dc.dynamize(source, method, X).eval()
    dc.verify(dyn, source, X)
    with torch.no_grad():
        route = dyn.run(X, policy=dc.Sampled(0, per_sample=True))[1]
        mixed = dyn.run(X, policy=dc.Forced(route))[0]
        alone = [
            dyn.run(X[i : i + 1], policy=dc.Forced({k: v[i : i + 1] for k, v in route.items()}))[0]
            for i in range(len(X))
        ]
    torch.testing.assert_close(mixed, torch.cat(alone))


def test_numbers_that_are_mixed_with_data_keep_rows_together() -> None:
    source = Flattened().eval()
    graph = capture(source, (X,), {}).graphs["eval"]
    assert numbered(graph)
    assert ordinals(graph).isdisjoint(numbered(graph))
    with pytest.raises(dc.NoSiteError):
        dc.dynamize(source, "dsnet(divisor=1, minimum=1)", X)
    dyn = dc.dynamize(source, "dsnet(divisor=1, minimum=1, gate=False)", X)
    dc.verify(dyn, source, X)


class Mixed(nn.Module):
    """A region of another precision between two of the usual one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 16), nn.Linear(16, 5)
        self.one, self.two, self.three = _Block(), _Block(), _Block()

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = h + self.one(h)
        with torch.autocast("cpu", torch.bfloat16):
            low = self.two(h) + h
            low = low + self.three(low)
        return self.head((h + low.float()).mean(1))


@pytest.mark.parametrize("method", ["dsnet(divisor=1, minimum=1)", "lcnet", "exits"])
def test_no_decision_within_a_region_of_another_precision(method: str) -> None:
    source = Mixed().eval()
    dyn = dc.dynamize(source, method, X).eval()
    with torch.no_grad():
        assert torch.equal(dyn.run(X, policy=dc.Full())[0], source(X))
        for seed in range(3):
            out, route = dyn.run(X, policy=dc.Sampled(seed, per_sample=True))
            assert out.isfinite().all()
            single = {name: rows[2:3] for name, rows in route.items()}
            alone = dyn.run(X[2:3], policy=dc.Forced(single))[0]
            torch.testing.assert_close(out[2:3], alone, rtol=2e-2, atol=2e-2)
    assert not torch.is_autocast_enabled("cpu")


def test_an_error_leaves_no_mode_behind() -> None:
    dyn = dc.dynamize(Mixed().eval(), "dsnet(divisor=1, minimum=1, gate=False)", X)
    weight = dyn.get_parameter("two.up.weight")
    weight.data = weight.data[:, :3]
    with pytest.raises(RuntimeError):
        dyn(X)
    assert not torch.is_autocast_enabled("cpu")
