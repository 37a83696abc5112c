"""Static networks in an ordinary loop of plain PyTorch: the source, and what a dynamic one must beat."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.fashion.data import Batches, Data, Split

Watch = Callable[[int, int], None]
"""Called as ``watch(steps done, steps)``."""

_WARM_UP = 0.1


@dataclass(frozen=True, slots=True)
class Training:
    """Settings of a static training: AdamW, a rate that rises for a tenth of the steps and falls to zero.

    Images move by up to `shift` pixels; an epoch takes `images` of them, None takes all. `decay` is that of
    weights; gradients are clipped to the norm `clip`, None leaves them. What `teacher` gives is learned from
    as much as labels are.
    """

    epochs: int
    rate: float
    batch: int
    seed: int
    shift: int = 0
    images: int | None = None
    decay: float = 0.02
    clip: float | None = None
    teacher: nn.Module | None = None


class Epochs(Protocol):
    """Batches of images and labels; every pass is another epoch."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


def train(
    net: nn.Module,
    data: Data,
    asked: Training,
    watch: Watch = lambda done, steps: None,
    batches: Epochs | None = None,
) -> float:
    """Cross-entropy, to the teacher's as well; `net` ends with the epoch that is best on validation.

    `batches` take the place of the training images, which are augmented.

    Returns:
        its validation accuracy.
    """
    batches = batches or Batches.seeded(data.train, asked.batch, asked.seed, asked.shift, asked.images)
    steps = asked.epochs * len(batches)
    optimizer = torch.optim.AdamW(net.parameters(), asked.rate, weight_decay=asked.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, asked.rate, steps, pct_start=_WARM_UP)
    best, kept, done = -1.0, net.state_dict(), 0
    for _ in range(asked.epochs):
        net.train()
        for images, labels in batches:
            optimizer.zero_grad()
            _loss(net(images), images, labels, asked.teacher).backward()
            if asked.clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), asked.clip)
            optimizer.step()
            schedule.step()
            watch(done := done + 1, steps)
        found = accuracy(net.eval(), data.validation)
        if found >= best:
            best, kept = found, copy.deepcopy(net.state_dict())
    net.load_state_dict(kept)
    return best


def _loss(output: Tensor, images: Tensor, labels: Tensor, teacher: nn.Module | None) -> Tensor:
    loss = F.cross_entropy(output, labels)
    if teacher is None:
        return loss
    with torch.no_grad():
        taught = teacher(images).softmax(1)
    return loss + F.cross_entropy(output, taught)


@torch.no_grad()
def accuracy(run: Callable[[Tensor], Tensor], split: Split) -> float:
    """Share of images that `run` names right."""
    right = sum(int((run(images).argmax(1) == labels).sum()) for images, labels in split.chunks())
    return right / len(split.labels)
