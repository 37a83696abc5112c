"""A small residual network in plain PyTorch, which knows nothing of dyncompile."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: [B, I, H, W] -> [B, O, H / stride, W / stride]."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Conv2d(width, out, 1, stride, bias=False) if width != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Pixels in, pixels out."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """[B, 1, 8, 8] -> logits [B, 10]; two stages of two blocks, of widths 32 and 64."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.stage1 = nn.Sequential(Block(32, 32, 1), Block(32, 32, 1))
        self.stage2 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the ten digits."""
        return self.head(self.stage2(self.stage1(self.stem(x))).mean((2, 3)))
