"""The benchmark of skipped branches: what it compares, and that a run that was cut short goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dyncompile as dc
from benchmarks import record, skipping
from benchmarks.skipping import RATES, Part
from dyncompile.latency import Times

NET = "tests.test_skipping_benchmark:net"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def net() -> tuple[nn.Module, Tensor]:
    """Four residual blocks on images [2, 3, 8, 8]."""
    blocks = [Block() for _ in range(4)]
    return nn.Sequential(nn.Conv2d(3, 4, 3), *blocks, nn.Flatten(), nn.Linear(144, 5)), torch.randn(
        2, 3, 8, 8
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    return tmp_path


def results(folder: Path) -> dict[str, dict[str, Any]]:
    return json.loads((folder / "skipping.json").read_text())["models"][NET]


def test_a_run_that_was_cut_short_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = (Part(NET, "plain", 1, 2), Part(NET, "deployed", 3, 2))
    monkeypatch.setattr(skipping, "PLAN", parts)
    measured: list[Part] = []
    real = skipping._measure  # pyright: ignore[reportPrivateUsage]

    def cut(part: Part) -> dict[str, object]:
        if len(measured) == 1:
            raise KeyboardInterrupt
        measured.append(part)
        return real(part)

    monkeypatch.setattr(skipping, "_measure", cut)
    with pytest.raises(KeyboardInterrupt):
        skipping.run()
    first = results(folder)
    assert len(first) == 2 + len(RATES)
    assert first["decide, skip 50%, batch 1, plain"]["macs"] > first["skip 50%, batch 1, plain"]["macs"]
    measured.clear()
    lines = skipping.missing()
    assert measured == [parts[1]]
    assert first.items() <= results(folder).items()
    assert len(lines) == len(results(folder)) == 2 * (2 + len(RATES))


def test_every_sample_skips_its_share() -> None:
    model, x = net()
    dyn = dc.dynamize(model.eval(), "lcnet(channels=False)", x)
    route = skipping.skipping(dyn, 0.5, 16)
    kept = torch.cat([*route.values()], 1)
    assert kept.shape == (16, 4)
    assert kept.sum(1).tolist() == [2.0] * 16
    assert len({tuple(row) for row in kept.tolist()}) > 1


def test_savings_are_shares_of_the_macs_that_are_left_out() -> None:
    times = {
        "source": Times([2.0, 2.0], [1.0, 1.0]),
        "skip 0%": Times([2.0, 2.0], [0.8, 0.8]),
        "skip 50%": Times([1.2, 1.2], [0.6, 0.6]),
    }
    found = skipping._compared(times, "skip 50%", 0.5)  # pyright: ignore[reportPrivateUsage]
    assert found["realized"] == pytest.approx(0.8)
    assert found["realized_own"] == pytest.approx(0.5)
    assert found["time"]["wall"]["median"] == pytest.approx(0.6)
