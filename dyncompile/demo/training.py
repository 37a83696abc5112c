"""The demonstration's training: an ordinary loop for the source, the engine for what is dynamic."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from dyncompile.demo.config import DemoConfig, Watch
from dyncompile.demo.digits import Digits, Shifted, Split
from dyncompile.runtime.model import DynamicModel
from dyncompile.train import fit
from dyncompile.train.history import History
from dyncompile.train.phase import Optimization, Schedule
from dyncompile.train.recipes import dsnet

_LEARNING_RATE = 5e-3
_WEIGHT_DECAY = 1e-2


def train_source(net: nn.Module, digits: Digits, config: DemoConfig, watch: Watch) -> None:
    """Cross-entropy; `net` ends with the weights of the epoch that was best on the validation digits."""
    optimizer, schedule = _optimizer(net, digits, config)
    generator = torch.Generator().manual_seed(config.seed)
    best, kept = -1.0, net.state_dict()
    for epoch in range(config.epochs):
        net.train()
        for images, labels in digits.train.batches(config.batch, generator):
            optimizer.zero_grad()
            _backward(F.cross_entropy(net(images), labels))
            optimizer.step()
            schedule.step()
        found = accuracy(net.eval(), digits.validation)
        if found >= best:
            best, kept = found, copy.deepcopy(net.state_dict())
        watch("train the source network", epoch + 1, config.epochs)
    net.load_state_dict(kept)


def train_dynamic(dyn: DynamicModel, digits: Digits, config: DemoConfig, watch: Watch) -> History:
    """DS-Net's two stages: all widths together, then the decision net up to its share of MACs."""
    recipe = dsnet(
        target=config.target,
        supernet_epochs=config.slicing_epochs,
        gate_epochs=config.gate_epochs,
        average=None,
        sparsification="worth",
        base=Optimization(rate=_LEARNING_RATE, decay=_WEIGHT_DECAY),
        schedule=Schedule(warmup=0.2),
        gates=Optimization(rate=_LEARNING_RATE),
    )
    validation = digits.validation
    return fit(
        dyn,
        recipe,
        Shifted(digits.train),
        TensorDataset(validation.images, validation.labels),
        batch_size=config.batch,
        seed=config.seed,
        progress=lambda update: watch(f"train {update.phase}", update.step, update.steps),
    )


@torch.no_grad()
def accuracy(run: Callable[[Tensor], Tensor], split: Split) -> float:
    """Share of digits that `run` names right."""
    return float((run(split.images).argmax(1) == split.labels).float().mean())


def _backward(loss: Tensor) -> None:
    loss.backward()  # pyright: ignore[reportUnknownMemberType]


def _optimizer(net: nn.Module, digits: Digits, config: DemoConfig) -> tuple[Any, Any]:
    """AdamW, and a learning rate that rises for a fifth of the steps and falls to zero by the last."""
    steps = config.epochs * -(-len(digits.train.labels) // config.batch)
    optimizer = torch.optim.AdamW(net.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, _LEARNING_RATE, total_steps=steps, pct_start=0.2
    )
    return optimizer, schedule
