"""Validation: what the learned policy achieves, and what it spends."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from dyncompile.policies import Learned
from dyncompile.program import Route
from dyncompile.runtime.model import DynamicModel
from dyncompile.train.accelerated import World
from dyncompile.train.batches import LABELS, rows_of
from dyncompile.train.columns import evaluating
from dyncompile.train.phase import Batch, Loss

Metric = Callable[[Any, Any], Any]
"""``metric(output, target)`` -> a number, mean over the batch; higher is better."""


def evaluate(
    dyn: DynamicModel,
    batches: Iterable[Batch],
    loss: Loss,
    metric: Metric,
    world: World,
    watch: Callable[[Route], object],
) -> dict[str, float]:
    """``metric``, ``loss`` and ``macs`` of the learned policy over all processes' batches.

    ``macs`` is the mean share of the source's MACs, decision nets included. Sparse execution: rows are
    grouped by decision and weights really narrowed. `watch` sees the route of every batch of this process.
    """
    totals = [0.0] * 4
    with evaluating(dyn):
        for batch in batches:
            with world.autocast():
                record = dyn.record(*batch.args, policy=Learned(), execution="sparse", **batch.kwargs)
                target = batch.target if batch.target is not None else batch.kwargs.get(LABELS)
                scores = float(metric(record.output, target)), float(loss(record.output, batch.target))
            macs = float((dyn.spent if dyn.gated else dyn.macs)(record.route).mean())
            rows = rows_of(batch)
            totals = [total + rows * one for total, one in zip(totals, (*scores, macs, 1.0), strict=True)]
            watch(record.route)
    right, lost, macs, rows = world.sum_numbers(totals)
    return {"metric": right / rows, "loss": lost / rows, "macs": macs / rows / dyn.static_macs}
