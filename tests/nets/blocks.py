"""Convolutional blocks whose channels are mixed by convolutions and additions only."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from .layers import DropPath, activation, channel_attention, conv, norm_2d
from .net import Spec


class Block(Protocol):
    """A part of a CNN: for an input of `width` channels, its module and the channels that come out."""

    def build(self, width: int) -> tuple[nn.Module, int]: ...


@dataclass(frozen=True, repr=False)
class Plain(Spec):
    """Convolution, norm, activation."""

    width: int
    kernel: int = 3
    stride: int = 1
    norm: str = "bn"
    act: str = "relu"

    def build(self, width: int) -> tuple[nn.Module, int]:
        return conv(width, self.width, self.kernel, self.stride, norm=self.norm, act=self.act), self.width


@dataclass(frozen=True, repr=False)
class Basic(Spec):
    """Residual block of two 3x3 convolutions, norm first when `pre`; identity shortcut where it fits."""

    width: int
    stride: int = 1
    norm: str = "bn"
    act: str = "relu"
    shortcut: str = "conv"
    pre: bool = False
    drop: float = 0.0

    def build(self, width: int) -> tuple[nn.Module, int]:
        body = self._pre(width) if self.pre else self._post(width)
        last = nn.Identity() if self.pre else activation(self.act, self.width)
        return Residual(body, _shortcut(self, width), last, self.drop), self.width

    def _post(self, width: int) -> nn.Sequential:
        first = conv(width, self.width, 3, self.stride, norm=self.norm, act=self.act)
        return nn.Sequential(first, conv(self.width, self.width, norm=self.norm))

    def _pre(self, width: int) -> nn.Sequential:
        # Not in place: the shortcut reads the same input, and an identity norm would let the change through.
        act = self.act.rstrip("_")
        first = conv(width, self.width, 3, self.stride, norm=self.norm, act=act)
        last = nn.Conv2d(self.width, self.width, 3, padding=1)
        return nn.Sequential(norm_2d(self.norm, width), activation(act, width), first, last)


@dataclass(frozen=True, repr=False)
class Bottleneck(Spec):
    """Residual block 1x1, 3x3, 1x1, with `groups` and channel attention as ResNeXt and SENet have them."""

    width: int
    inner: int = 2
    groups: int = 2
    stride: int = 1
    norm: str = "bn"
    act: str = "relu"
    attention: str = "none"
    shortcut: str = "conv"
    drop: float = 0.0

    def build(self, width: int) -> tuple[nn.Module, int]:
        inner = self.inner * self.groups
        body = nn.Sequential(
            conv(width, inner, 1, norm=self.norm, act=self.act),
            conv(inner, inner, 3, self.stride, self.groups, norm=self.norm, act=self.act),
            conv(inner, self.width, 1, norm=self.norm),
            channel_attention(self.attention, self.width),
        )
        last = activation(self.act, self.width)
        return Residual(body, _shortcut(self, width), last, self.drop), self.width


@dataclass(frozen=True, repr=False)
class Grouped(Spec):
    """Pointwise then grouped convolution, `groups` times `inner` to `groups` times `outer` channels."""

    groups: int
    inner: int
    outer: int
    stride: int = 1
    norm: str = "bn"
    act: str = "relu"

    def build(self, width: int) -> tuple[nn.Module, int]:
        inner, outer = self.groups * self.inner, self.groups * self.outer
        first = conv(width, inner, 1, norm=self.norm, act=self.act)
        grouped = conv(inner, outer, 3, self.stride, self.groups, self.norm, self.act)
        return nn.Sequential(first, grouped), outer


@dataclass(frozen=True, repr=False)
class Depthwise(Spec):
    """Depthwise convolution, `multiplier` outputs per channel; then pointwise to `width` unless that is 0."""

    width: int = 0
    multiplier: int = 1
    kernel: int = 3
    stride: int = 1
    norm: str = "bn"
    act: str = "relu"

    def build(self, width: int) -> tuple[nn.Module, int]:
        inner = width * self.multiplier
        depthwise = conv(width, inner, self.kernel, self.stride, width, self.norm, self.act)
        if not self.width:
            return depthwise, inner
        return nn.Sequential(depthwise, conv(inner, self.width, 1, norm=self.norm, act=self.act)), self.width


@dataclass(frozen=True, repr=False)
class Inverted(Spec):
    """Inverted residual: expand, depthwise, channel attention, project; residual where the shape allows."""

    width: int
    expand: int = 2
    kernel: int = 3
    stride: int = 1
    act: str = "silu"
    attention: str = "sigmoid"
    drop: float = 0.0

    def build(self, width: int) -> tuple[nn.Module, int]:
        inner = width * self.expand
        body = nn.Sequential(
            conv(width, inner, 1, act=self.act),
            conv(inner, inner, self.kernel, self.stride, inner, act=self.act),
            channel_attention(self.attention, inner),
            conv(inner, self.width, 1),
        )
        if self.stride != 1 or width != self.width:
            return body, self.width
        return Residual(body, nn.Identity(), nn.Identity(), self.drop), self.width


class Residual(nn.Module):
    """last(drop(body(x)) + shortcut(x)), added in place as torchvision does."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, last: nn.Module, drop: float) -> None:
        super().__init__()
        self.body, self.shortcut, self.last = body, shortcut, last
        self.drop = DropPath(drop)

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.body(x))
        y += self.shortcut(x)
        return self.last(y)


def _shortcut(block: Basic | Bottleneck, width: int) -> nn.Module:
    if block.stride == 1 and block.width == width:
        return nn.Identity()
    if block.shortcut == "pool" and block.stride == 2:
        pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
        return nn.Sequential(pool, conv(width, block.width, 1, norm=block.norm))
    return conv(width, block.width, 1, block.stride, norm=block.norm)
