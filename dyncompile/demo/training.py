"""The demonstration's two short loops: an ordinary one for the source, and sandwich steps for all widths.

Sandwich rule and in-place distillation: Universally Slimmable Networks (Yu and Huang, ICCV 2019). A recipe of
the training engine will replace the second loop.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dyncompile.demo.config import DemoConfig, Watch
from dyncompile.demo.digits import Digits, Split
from dyncompile.policies import Forced, Full, Sampled, Smallest
from dyncompile.runtime.model import DynamicModel

_LEARNING_RATE = 5e-3
_WEIGHT_DECAY = 1e-2


def train_source(net: nn.Module, digits: Digits, config: DemoConfig, watch: Watch) -> None:
    """Cross-entropy; `net` ends with the weights of the epoch that was best on the validation digits."""
    optimizer, schedule = _optimizer(net, digits, config, config.epochs)
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


def train_widths(dyn: DynamicModel, digits: Digits, config: DemoConfig, watch: Watch) -> None:
    """Sandwich steps over all training digits, then statistics of the final weights for every width."""
    optimizer, schedule = _optimizer(dyn, digits, config, config.slicing_epochs)
    generator = torch.Generator().manual_seed(config.seed + 1)
    step = 0
    for epoch in range(config.slicing_epochs):
        dyn.train()
        for images, labels in digits.train.batches(config.batch, generator):
            optimizer.zero_grad()
            sandwich(dyn, images, labels, seed=step)
            optimizer.step()
            schedule.step()
            step += 1
        watch("train all widths together", epoch + 1, config.slicing_epochs)
    recalibrate(dyn, digits.train, config.batch)


def sandwich(dyn: DynamicModel, images: Tensor, labels: Tensor, *, seed: int) -> None:
    """Gradients of one step: the largest width learns from labels, the smallest and two random ones from it.

    Each width has its own backward pass, so that only one graph is in memory at a time.
    """
    logits, _ = dyn.run(images, policy=Full())
    _backward(F.cross_entropy(logits, labels))
    soft = logits.detach().softmax(1)
    for policy in (Smallest(), Sampled(2 * seed), Sampled(2 * seed + 1)):
        narrow, _ = dyn.run(images, policy=policy)
        _backward(F.cross_entropy(narrow, soft))


@torch.no_grad()
def recalibrate(dyn: DynamicModel, split: Split, batch: int) -> None:
    """Batch-norm statistics of every width from the final weights, on digits as they are (not shifted)."""
    dyn.train()
    for column in range(max(choice.width for choice in dyn.choices.values())):
        for start in range(0, len(split.images) - 1, batch):
            dyn.run(split.images[start : start + batch], policy=Forced(dyn.route(column)))
    dyn.eval()


@torch.no_grad()
def accuracy(run: Callable[[Tensor], Tensor], split: Split) -> float:
    """Share of digits that `run` names right."""
    return float((run(split.images).argmax(1) == split.labels).float().mean())


def _backward(loss: Tensor) -> None:
    loss.backward()  # pyright: ignore[reportUnknownMemberType]


def _optimizer(net: nn.Module, digits: Digits, config: DemoConfig, epochs: int) -> tuple[Any, Any]:
    """AdamW, and a learning rate that rises for a fifth of the steps and falls to zero by the last."""
    steps = epochs * -(-len(digits.train.labels) // config.batch)
    optimizer = torch.optim.AdamW(net.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, _LEARNING_RATE, total_steps=steps, pct_start=0.2
    )
    return optimizer, schedule
