"""What a policy achieves on labeled data, what it spends, and how it uses every choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dyncompile.policies import Policy
from dyncompile.program import Choice, Domain
from dyncompile.runtime.model import DynamicModel
from dyncompile.train.accelerated import world
from dyncompile.train.batches import LABELS, rows_of
from dyncompile.train.columns import evaluating
from dyncompile.train.data import Feed, Layout, open_stream
from dyncompile.train.losses import accuracy


@dataclass(frozen=True)
class Evaluation:
    """Numbers of one policy.

    Attributes:
        samples: how many.
        accuracy: share that the largest logit names right.
        macs: mean share of the source's MACs, decision nets included where they are asked.
        parameters: elements that a sample's path reads over those of the source, mean over samples, decision
            nets left out; where weights are mixed, with all that they are mixed from.
        use: per choice, the share of samples per column: how often it is picked, or switched on.
    """

    samples: int
    accuracy: float
    macs: float
    parameters: float
    use: Mapping[str, Mapping[str, float]]


@torch.no_grad()
def evaluate_policy(dyn: DynamicModel, data: Any, policy: Policy, *, batch_size: int = 64) -> Evaluation:
    """Evaluate on a dataset of (input, target) or dicts, or on batches.

    Raises:
        InputError: data that is empty, cannot be read as batches, or has no labels.
    """
    right, macs, active, rows = 0.0, 0.0, 0.0, 0
    used = {name: torch.zeros(choice.width) for name, choice in dyn.choices.items()}
    cost = dyn.spent if policy.reads_gates and dyn.gated else dyn.macs
    with world(None, (), None) as here, evaluating(dyn):
        dyn.to(here.device)
        stream = open_stream(data, Layout(batch_size, 1, 0, 1, training=False), here)
        for batch in Feed(stream, dyn.program, here.device).epoch(0):
            record = dyn.record(*batch.args, policy=policy, execution="sparse", **batch.kwargs)
            target = batch.target if batch.target is not None else batch.kwargs.get(LABELS)
            count = rows_of(batch)
            right += count * accuracy(record.output, target)
            macs += count * float(cost(record.route).mean())
            active += count * float(dyn.active_parameters(record.route).mean())
            rows += count
            for name, decided in record.route.items():
                used[name] += (decided.detach().float().cpu() > 0).float().sum(0)
    use = {name: _by_label(dyn.choices[name], counts / rows) for name, counts in used.items()}
    read = active / rows / dyn.source_parameters
    return Evaluation(rows, right / rows, macs / rows / dyn.static_macs, read, use)


def _by_label(choice: Choice, shares: torch.Tensor) -> dict[str, float]:
    """Columns of one-hot choices by label; of the others the mean share that is on, if they are many."""
    values = [float(share) for share in shares]
    if choice.domain is not Domain.ONE_HOT and choice.width > 1 and not choice.labels:
        return {"on": sum(values) / len(values)}
    labels = choice.labels or tuple(map(str, range(choice.width)))
    return dict(zip(labels, values, strict=True))
