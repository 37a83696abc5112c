"""A whole CNN: stem, blocks, pooled head."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import Block, Plain
from .net import Spec


@dataclass(frozen=True, repr=False)
class Head(Spec):
    """Pooling ("adaptive", "mean", "max"), hidden layer unless `hidden` is 0, dropout, classifier."""

    classes: int
    pool: str = "adaptive"
    hidden: int = 0
    drop: float = 0.0


@dataclass(frozen=True, repr=False)
class Cnn(Spec):
    """A CNN on [batch, 3, *size]."""

    stem: Plain
    blocks: tuple[Block, ...]
    head: Head
    size: tuple[int, int] = (8, 8)
    batch: int = 2

    def module(self) -> nn.Module:
        return CnnModule(self)

    def inputs(self) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        return (torch.randn(self.batch, 3, *self.size),), {}


class CnnModule(nn.Module):
    """[B, 3, H, W] -> [B, classes]."""

    def __init__(self, spec: Cnn) -> None:
        super().__init__()
        self.stem, width = spec.stem.build(3)
        self.blocks = nn.Sequential()
        for block in spec.blocks:
            module, width = block.build(width)
            self.blocks.append(module)
        self.head = HeadModule(spec.head, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


class HeadModule(nn.Module):
    """[B, width, H, W] -> [B, classes]."""

    def __init__(self, spec: Head, width: int) -> None:
        super().__init__()
        self.pool = spec.pool
        self.hidden = nn.Linear(width, spec.hidden) if spec.hidden else None
        self.drop = nn.Dropout(spec.drop)
        self.classifier = nn.Linear(spec.hidden or width, spec.classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self._pooled(x)
        y = y if self.hidden is None else F.hardswish(self.hidden(y))
        return self.classifier(self.drop(y))

    def _pooled(self, x: Tensor) -> Tensor:
        match self.pool:
            case "adaptive":
                return torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1)
            case "mean":
                return x.mean([-2, -1])
            case _:
                return x.amax((2, 3))
