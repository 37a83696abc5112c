"""Recalibration: statistics equal those of a network cut by hand, and nothing else moves."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional as F

import dyncompile as dc
from dyncompile.deploy.recalibrate import recalibrate
from dyncompile.processes import mean_over_all
from dyncompile.train import Batch
from tests.oracles import Residual, narrowed
from tests.support import snapshot

WIDTHS = {"stem": 8, "inner": 12, "second": 16, "out": 20}
HALF = {name: width // 2 for name, width in WIDTHS.items()}
SPEC = "dsnet(ratios=(0.5, 1.0), divisor=1, minimum=1, gate=False)"


class WithDropout(nn.Module):
    """Norm, dropout, norm: [B, 6] -> [B, 3]; what the second norm sees depends on dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.drop, self.second, self.norm2 = (
            nn.Dropout(0.5),
            nn.Linear(8, 8),
            nn.BatchNorm1d(8, momentum=0.03),
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.norm1(self.first(x)).relu())
        return self.head(self.norm2(self.second(y)).relu())


def test_statistics_inside_a_branch_are_those_of_the_samples_that_run_it() -> None:
    dyn = residual("lcnet(channels=False)").eval()
    x = data(40)
    with torch.no_grad():
        stem = F.conv2d(x, dyn.get_parameter("conv.weight"), dyn.get_parameter("conv.bias"), padding=1)
        entry = torch.relu(F.batch_norm(stem, None, None, training=True))
        means = entry.mean((1, 2, 3))
        between = means.sort().values[19:21].mean()  # the first branch runs for half of the samples
        gate = dyn.get_parameter("dyn.gates.layer.a.head.weight")
        gate.fill_(1 / gate.shape[1])
        dyn.get_parameter("dyn.gates.layer.a.head.bias").copy_(-between)
        every = F.conv2d(entry, dyn.get_parameter("a.conv1.weight"), padding=1)
    recalibrate(dyn, batches(x, 40))
    found = dyn.get_buffer("a.norm1.running_mean")
    assert torch.allclose(found, every[means > between].mean((0, 2, 3)), atol=1e-5)
    assert not torch.allclose(found, every.mean((0, 2, 3)), atol=1e-3)


def test_channels_that_no_sample_keeps_stay_as_they_were() -> None:
    dyn = residual("lcnet(layers=False)").eval()
    x = data(60)
    name = next(one for one in dyn.choices if "a.conv1" in one)
    before = dyn.get_buffer("a.norm1.running_mean").clone()
    with torch.no_grad():
        dyn.get_parameter(f"dyn.gates.{name}.head.bias")[1] = -1
        stem = F.conv2d(x, dyn.get_parameter("conv.weight"), dyn.get_parameter("conv.bias"), padding=1)
        entry = torch.relu(F.batch_norm(stem, None, None, training=True))
        expected = F.conv2d(entry, dyn.get_parameter("a.conv1.weight"), padding=1).mean((0, 2, 3))
    expected[1] = before[1]
    recalibrate(dyn, batches(x, 60))
    assert torch.allclose(dyn.get_buffer("a.norm1.running_mean"), expected, atol=1e-5)


def data(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 + 1


@cache
def _made(spec: str) -> dc.DynamicModel:
    torch.manual_seed(0)
    return dc.dynamize(Residual(), spec, data(2))


def residual(spec: str = SPEC) -> dc.DynamicModel:
    """A dynamic model with tensors of its own, the same for the same spec."""
    return copy.deepcopy(_made(spec))


def batches(x: Tensor, size: int) -> list[Batch]:
    return [Batch((part,), {}, None) for part in x.split(size)]


def cut_by_hand(dyn: dc.DynamicModel, widths: dict[str, int]) -> Residual:
    tensors = {name: t for name, t in snapshot(dyn).items() if not name.startswith("dyn.")}
    return narrowed(Residual(**widths), tensors, Residual.cut(**widths))


def statistics_of(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The true statistics: of one batch that holds everything (momentum 1 keeps nothing else)."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    net.train()
    with torch.no_grad():
        net(x)
    return {name: buffer for name, buffer in net.named_buffers() if "running" in name}


def test_statistics_are_those_of_a_network_cut_by_hand() -> None:
    dyn, x = residual(), data(24)
    expected = statistics_of(cut_by_hand(dyn, HALF), x)
    recalibrate(dyn, batches(x, 24))
    buffers = dict(dyn.named_buffers())
    assert len(expected) == 10
    for name, value in expected.items():
        torch.testing.assert_close(buffers[f"dyn.statistics.width.0.{name}"], value, rtol=1e-5, atol=1e-5)


def test_statistics_are_pooled_over_uneven_batches() -> None:
    dyn, x = residual(), torch.cat([data(20), 5 * data(7, seed=1)])
    first = cut_by_hand(dyn, HALF).conv(x).detach()
    recalibrate(dyn, batches(x, 10))
    mean, var = (dyn.get_buffer(f"dyn.statistics.width.0.norm.running_{what}") for what in ("mean", "var"))
    torch.testing.assert_close(mean, first.mean((0, 2, 3)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(var, first.var((0, 2, 3)), rtol=1e-5, atol=1e-5)


def test_full_estimates_the_sources_statistics_too() -> None:
    dyn, x = residual(), data(24)
    expected = statistics_of(cut_by_hand(dyn, WIDTHS), x)
    recalibrate(dyn, batches(x, 24), full=True)
    for name, value in expected.items():
        torch.testing.assert_close(dyn.get_buffer(name), value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_only_private_statistics_change(training: bool) -> None:
    dyn = residual("dsnet(divisor=1, minimum=1)").train(training)
    dyn.run(data(6), policy=dc.Full())
    before = snapshot(dyn)
    recalibrate(dyn, batches(data(12), 4))
    assert dyn.training is training
    changed = {name for name, value in snapshot(dyn).items() if not torch.equal(value, before[name])}
    private = {name for name in before if name.startswith("dyn.statistics.")}
    assert changed == private
    assert private


def test_dropout_is_off_and_training_momentum_does_not_matter() -> None:
    net, x = WithDropout(), torch.randn(40, 6)
    dyn = dc.dynamize(net, SPEC, x[:2]).train()
    recalibrate(dyn, batches(x, 40))
    narrow = copy.deepcopy(net).train()
    narrow.drop.eval()
    keep = slice(0, 4)
    y = torch.nn.functional.batch_norm(
        x @ net.first.weight[keep].T + net.first.bias[keep], None, None, training=True
    ).relu()
    seen = y @ net.second.weight[keep, keep].T + net.second.bias[keep]
    mean, var = (dyn.get_buffer(f"dyn.statistics.width.0.norm2.running_{what}") for what in ("mean", "var"))
    torch.testing.assert_close(mean, seen.mean(0).detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(var, seen.var(0).detach(), rtol=1e-5, atol=1e-5)


def test_norms_before_the_gate_keep_the_sources_statistics() -> None:
    """They are not estimated, so what follows must see them as they will be in use."""
    dyn, x = residual("dsnet(ratios=(0.5, 1.0), divisor=1, minimum=1)"), data(16)
    assert "dyn.statistics.width.0.norm.running_mean" not in dict(dyn.named_buffers())
    recalibrate(dyn, batches(x, 16))
    source = cut_by_hand(dyn, WIDTHS).eval()
    stream = source.norm(source.conv(x)).relu()
    inner = dyn.get_buffer("dyn.statistics.width.0.a.norm1.running_mean")
    seen = source.a.conv1(stream)[:, : len(inner)].detach()
    torch.testing.assert_close(inner, seen.mean((0, 2, 3)), rtol=1e-5, atol=1e-5)


def test_every_uniform_column_of_several_choices_runs() -> None:
    dyn = residual("dsnet(per=stage, divisor=1, minimum=1, gate=False)")
    before = snapshot(dyn)
    recalibrate(dyn, batches(data(12), 6))
    private = [name for name in before if name.startswith("dyn.statistics.")]
    assert {name.split(".")[4] for name in private} == {"0", "1", "2"}
    assert all(not torch.equal(before[name], dyn.get_buffer(name)) for name in private)


def test_limit_counts_batches_per_column_and_iterators_serve_all_columns() -> None:
    dyn = residual()
    other = copy.deepcopy(dyn)
    recalibrate(dyn, iter(batches(data(12), 4)), limit=2)
    recalibrate(other, batches(data(12)[:8], 4))
    assert all(torch.equal(a, b) for a, b in zip(dyn.buffers(), other.buffers(), strict=True))


def test_nothing_happens_without_batch_norms() -> None:
    dyn = dc.dynamize(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), SPEC, torch.randn(2, 4))
    before = snapshot(dyn)
    recalibrate(dyn, [])
    assert all(torch.equal(value, before[name]) for name, value in snapshot(dyn).items())


@pytest.mark.parametrize("given", [[], batches(data(1), 1)])
def test_too_little_data_is_an_error_and_changes_nothing(given: list[Batch]) -> None:
    dyn = residual()
    before = snapshot(dyn)
    with pytest.raises(dc.InputError, match="at least two samples"):
        recalibrate(dyn, given)
    assert all(torch.equal(value, before[name]) for name, value in snapshot(dyn).items())


def test_limit_below_one_is_an_error() -> None:
    with pytest.raises(dc.SpecError, match="limit=0"):
        recalibrate(residual(), batches(data(4), 4), limit=0)


def _recalibrated(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    dyn = residual()
    recalibrate(dyn, batches(data(24)[rank::2], 12))
    mean, count = mean_over_all(torch.tensor([3.0, 5.0, 10.0][rank * 2 : rank * 2 + 2]))
    found = {**snapshot(dyn), "mean": torch.tensor(mean), "count": torch.tensor(count)}
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_pool_their_samples(tmp_path: Path) -> None:
    spawn(_recalibrated, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (float(first["mean"]), int(first["count"])) == (6.0, 3)
    dyn = residual()
    stem = cut_by_hand(dyn, HALF).conv(data(24)).detach()
    found = first["dyn.statistics.width.0.norm.running_var"]
    torch.testing.assert_close(found, stem.var((0, 2, 3)), rtol=1e-5, atol=1e-5)
