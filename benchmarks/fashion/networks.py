"""A small ResNet and a small ViT in plain PyTorch: they know nothing of dyncompile.

Both take [B, 1, 28, 28] and give logits [B, 10]. `scale` multiplies every width, so that a static network of
a given share of MACs can be built beside a dynamic one.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.fashion.data import CLASSES

SIDE, PATCH = 28, 7
_STEPS = 200


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: [B, I, H, W] -> [B, O, H / stride, W / stride]."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        same = width == out and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(width, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels in, pixels out."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """A strided stem, then `depth` residual blocks at 14, 7 and 4 pixels each (He et al., CVPR 2016)."""

    def __init__(self, widths: tuple[int, int, int] = (8, 16, 32), depth: int = 1) -> None:
        super().__init__()
        first, _, last = widths
        self.stem = nn.Sequential(
            nn.Conv2d(1, first, 3, 2, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU(inplace=True)
        )
        self.stages = nn.Sequential(
            _stage(first, first, 1, depth),
            _stage(first, widths[1], 2, depth),
            _stage(widths[1], last, 2, depth),
        )
        self.head = nn.Linear(last, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.stages(self.stem(x)).mean((2, 3)))

    @classmethod
    def scaled(cls, scale: float) -> SmallResNet:
        """All widths times `scale`, even numbers."""
        first, middle, last = (max(2, 2 * round(width * scale / 2)) for width in (8, 16, 32))
        return cls((first, middle, last))


def _stage(width: int, out: int, stride: int, depth: int) -> nn.Sequential:
    return nn.Sequential(Block(width, out, stride), *(Block(out, out, 1) for _ in range(depth - 1)))


class Attention(nn.Module):
    """Self-attention over tokens [B, T, D]; `inner` = heads x width of a head."""

    def __init__(self, dim: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(dim, inner) for _ in range(3))
        self.out = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens in, tokens out."""
        split = [net(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for net in self._projections()]
        return self.out(F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))

    def _projections(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        return self.query, self.key, self.value


class Layer(nn.Module):
    """Pre-norm transformer layer on tokens [B, T, D]."""

    def __init__(self, dim: int, heads: int, inner: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, inner)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens in, tokens out."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SmallViT(nn.Module):
    """16 patches of 7x7 pixels and a class token (Dosovitskiy et al., ICLR 2021), pre-norm."""

    def __init__(
        self, dim: int = 48, heads: int = 4, inner: int = 48, hidden: int = 96, depth: int = 4
    ) -> None:
        super().__init__()
        tokens = (SIDE // PATCH) ** 2 + 1
        self.patches = nn.Conv2d(1, dim, PATCH, PATCH)
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(torch.randn(1, tokens, dim) * 0.02)
        self.layers = nn.Sequential(*(Layer(dim, heads, inner, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.token.expand(x.shape[0], -1, -1), patches), 1) + self.position
        return self.head(self.norm(self.layers(tokens))[:, 0])

    @classmethod
    def scaled(cls, scale: float) -> SmallViT:
        """Embedding, heads' width and hidden dim times `scale`; as many heads and layers."""
        dim, head, hidden = (max(1, round(width * scale)) for width in (48, 12, 96))
        return cls(dim, 4, 4 * head, hidden)


NETWORKS: Mapping[str, Callable[[float], nn.Module]] = {
    "resnet": SmallResNet.scaled,
    "vit": SmallViT.scaled,
}


def build(network: str, scale: float = 1.0, seed: int = 0) -> nn.Module:
    """A freshly initialized network; torch's global generator is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[network](scale)


def count_macs(net: nn.Module) -> float:
    """MACs per image of convolutions, linear layers and attention, by torch's own counter."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 1, SIDE, SIDE))
    return counter.get_total_flops() / 2


def scale_for(network: str, share: float) -> float:
    """The scale whose network comes nearest to `share` of the full network's MACs."""
    if share >= 1:
        return 1.0
    full = count_macs(build(network))

    def of(step: int) -> float:
        return count_macs(build(network, step / _STEPS)) / full

    above = bisect.bisect_left(range(1, _STEPS), share, key=of) + 1
    return min((above - 1 or 1, above), key=lambda step: abs(of(step) - share)) / _STEPS
