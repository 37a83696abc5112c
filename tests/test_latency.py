"""The measured cost model, on a device whose clock counts MACs: there time and MACs must be the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dyncompile.latency.timing import Asked
from tests.latency_support import NETS, cached, random_routes, timed

PER_MAC = 1e-9


@pytest.mark.parametrize("name", NETS)
def test_time_is_macs_where_time_is_macs(name: str, tmp_path: Path) -> None:
    dyn = cached(name)
    latency = timed(dyn, tmp_path)
    assert latency.source == pytest.approx(PER_MAC * dyn.static_macs, rel=1e-9)
    for route in random_routes(dyn, 6):
        torch.testing.assert_close(latency(route), PER_MAC * dyn.macs(route), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", NETS)
def test_what_a_learned_route_takes_is_what_runs(name: str, tmp_path: Path) -> None:
    dyn, x = cached(name), torch.randn(2, 3, 16, 16)
    latency = timed(dyn, tmp_path)
    for route in random_routes(dyn, 2):
        row = {choice: rows[:1] for choice, rows in route.items()}
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            dyn.run(x, policy=Asked(row))
        assert float(latency.spent(row)) == pytest.approx(PER_MAC * counter.get_total_flops() / 2 / len(x))
