"""Golden listings of rewritten graphs: what a pass does, readable. ``UPDATE_GOLDEN=1`` writes them anew."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dyncompile.capture import capture
from dyncompile.pipeline import apply_passes
from dyncompile.program import Program
from dyncompile.spec import parse_specs

FOLDER = Path(__file__).parent / "golden"


class Plain(nn.Module):
    """Two convolutions, one norm, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.norm(self.first(x)).relu())
        return self.head(x.mean((2, 3)))


class Grouped(nn.Module):
    """A grouped convolution whose groups move, between two that are not grouped."""

    def __init__(self) -> None:
        super().__init__()
        self.widen = nn.Conv2d(3, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 3, groups=4)
        self.narrow = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.grouped(self.widen(x))).flatten(1)


class Attention(nn.Module):
    """One attention layer with fused queries, keys and values: heads are gathered from three places."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, 4, 2).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Residual(nn.Module):
    """Two branches: one that a ReLU follows, one on what is left."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)
        self.last = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (x + self.down(self.up(x).relu())).relu()
        return self.head(x + self.last(x))


SLICED = "dsnet(gate=False, ratios=(0.5, 1.0), divisor=1, minimum=1)"
CASES: dict[str, tuple[type[nn.Module], tuple[int, ...], str]] = {
    "plain": (Plain, (2, 3, 6, 6), SLICED),
    "grouped": (Grouped, (2, 3, 4, 4), SLICED),
    "attention": (Attention, (2, 5, 8), SLICED),
    "layers": (Residual, (2, 3), "lcnet(channels=False)"),
    "channels": (Residual, (2, 3), "lcnet(layers=False, block=4)"),
    "routes": (Residual, (2, 3), "routing(candidates=('identity', 'lowrank'), hidden=4, rank=0.5)"),
    "basis": (Plain, (2, 3, 6, 6), "basisnet(bases=2, overhead=1.0)"),
    "exits": (Plain, (2, 3, 6, 6), "exits(at=(0.5,), confidence=margin)"),
    "resolution": (Plain, (2, 3, 8, 8), "resolution(sizes=(4,))"),
    "depth": (
        Residual,
        (2, 3),
        "dsnet(gate=False, ratios=(0.5, 1.0), divisor=1, minimum=1, depth=(0.5, 1.0))",
    ),
}


def _programs(name: str) -> tuple[Program, Program]:
    build, shape, spec = CASES[name]
    before = capture(build(), (torch.randn(shape),))
    return before, apply_passes(before, parse_specs(spec, {}))


def _counts(before: Program, after: Program) -> str:
    """How many operators the pass inserted, removed and replaced by others, in the evaluation graph."""
    old, new = ({n.name: n.target for n in p.graphs["eval"].nodes} for p in (before, after))
    replaced = sum(old[name] != new[name] for name in old.keys() & new.keys())
    inserted, removed = len(new.keys() - old.keys()), len(old.keys() - new.keys())
    return f"# {inserted} inserted, {removed} removed, {replaced} replaced"


@pytest.mark.parametrize("name", CASES)
def test_the_rewritten_graph_reads_as_expected(name: str) -> None:
    before, after = _programs(name)
    text = f"{_counts(before, after)}\n{after.listing('eval')}\n"
    path = FOLDER / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        FOLDER.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_lost_on_the_way(name: str) -> None:
    before, after = _programs(name)
    kept: list[Counter[Any]] = [Counter(n.name for n in p.graphs["eval"].nodes) for p in (before, after)]
    assert not kept[0] - kept[1]
