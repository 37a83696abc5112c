"""Time as what a budget counts: on a device where a linear layer's MACs take 100 times as long."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch

import dyncompile as dc
from dyncompile.cost import Cost, ModelMacs
from dyncompile.errors import DyncompileWarning
from dyncompile.latency import Latency
from dyncompile.runtime.model import Record
from dyncompile.train import Batch, Clock, Moment
from dyncompile.train.budget import Budget, HingeBudget, RatioBudget
from dyncompile.train.calibrate import calibrate
from dyncompile.train.columns import check_target, column_shares, reachable_shares
from tests.cli_data import sets
from tests.latency_support import METHODS, WorkClock, made, timed

TARGET = 0.6


def gated() -> dc.DynamicModel:
    """A gate that tells samples apart and picks one of four widths, on images [B, 3, 8, 8]."""
    dyn = copy.deepcopy(made(METHODS["widths"]))
    with torch.no_grad():
        dyn.get_parameter("dyn.gates.width.head.weight").normal_(0, 3)
    return dyn


def slow_linear(dyn: dc.DynamicModel, folder: Path) -> Latency:
    return timed(dyn, folder, WorkClock(prices={"addmm": 100}))


def learned_share(dyn: dc.DynamicModel, cost: Cost, x: torch.Tensor) -> float:
    with torch.no_grad():
        _, route = dyn.eval().run(x, policy=dc.Learned())
    return float(cost.spent(route).mean()) / cost.source


def test_training_meets_a_share_of_the_source_time(tmp_path: Path) -> None:
    dyn, (data, _) = gated(), sets()
    latency = slow_linear(dyn, tmp_path / "times")
    recipe = dc.recipes.dsnet(target=TARGET, supernet_epochs=1, gate_epochs=1, average=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DyncompileWarning)
        history = dc.fit(dyn, recipe, data, data, cost=latency, progress=False, directory=tmp_path / "run")
    assert history.calibration is not None
    assert history.calibration["unit"] == "seconds"
    assert history.calibration["within"]
    found = learned_share(dyn, latency, data.tensors[0])
    assert found == pytest.approx(history.calibration["reached"], rel=0.03)  # one sample may be at a tie
    assert found == pytest.approx(TARGET, rel=0.03)
    assert abs(learned_share(dyn, ModelMacs(dyn), data.tensors[0]) - TARGET) > 0.02
    with pytest.raises(dc.CheckpointError):  # another currency is another training
        dc.fit(dyn, recipe, data, data, progress=False, directory=tmp_path / "run")


def test_calibration_counts_what_it_is_told(tmp_path: Path) -> None:
    dyn, x = gated(), sets()[0].tensors[0]
    latency = slow_linear(dyn, tmp_path)
    for cost in (latency, ModelMacs(dyn)):
        done = calibrate(dyn, [Batch((x,), {}, None)], 0.55, cost=cost)
        assert done.unit == cost.unit
        assert done.within
        assert learned_share(dyn, cost, x) == pytest.approx(0.55, rel=0.03)  # one sample may be at a tie
    assert abs(learned_share(dyn, latency, x) - 0.55) > 0.01


def test_a_target_below_the_fastest_route_is_refused(tmp_path: Path) -> None:
    dyn = gated()
    latency = slow_linear(dyn, tmp_path)
    least, most = reachable_shares(dyn, latency)
    assert least > reachable_shares(dyn)[0]
    assert most > 1
    check_target(dyn, least + 1e-6, latency)
    with pytest.raises(dc.SpecError, match=r"of the source's seconds \([\d.e-]+\) is below"):
        check_target(dyn, least - 1e-3, latency)
    with pytest.raises(dc.SpecError, match="seconds"):
        dc.fit(dyn, dc.recipes.dsnet(target=least - 1e-3), sets()[1], cost=latency, progress=False)


def moment(dyn: dc.DynamicModel, rows: torch.Tensor, cost: Cost | None) -> Moment:
    record = Record(None, {"width": rows}, {})
    return Moment(
        dyn=dyn,
        batch=Batch((), {}, None),
        record=record,
        loss=lambda output, target: torch.tensor(0.5),
        clock=Clock(0, 100, 0),
        teacher=lambda policy: record,
        memory={},
        given_cost=cost,
    )


def test_budgets_press_on_time(tmp_path: Path) -> None:
    """From column to column the gradient of a budget rises as the cost that it is given."""
    dyn = gated()
    latency = slow_linear(dyn, tmp_path)
    shares = column_shares(dyn, dyn.choices["width"], latency)
    assert not torch.allclose(shares, column_shares(dyn, dyn.choices["width"]))
    for term in (Budget(0.5), HingeBudget(0.5), RatioBudget()):
        rows = torch.eye(4)[[1, 3]].requires_grad_()
        term(moment(dyn, rows, latency)).backward()
        assert rows.grad is not None
        steps = rows.grad[0].diff() / shares.diff().float()
        torch.testing.assert_close(steps, steps[:1].expand(3), rtol=1e-4, atol=0)
    macs = RatioBudget(reference=dyn.static_macs)(moment(dyn, torch.eye(4)[[3]], None))
    assert float(macs) == pytest.approx(0.5 * reachable_shares(dyn)[1] ** 2)
