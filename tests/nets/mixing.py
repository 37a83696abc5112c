"""Convolutional blocks that cut, join, move or resize: concatenation, shuffle, channels last, up and down."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import DropPath, ResponseNorm, activation, conv, norm_2d
from .net import Spec


@dataclass(frozen=True, repr=False)
class Dense(Spec):
    """DenseNet: each layer reads the concatenation of all before it and adds `growth` channels."""

    growth: int
    layers: int = 2
    norm: str = "bn"
    act: str = "relu"

    def build(self, width: int) -> tuple[nn.Module, int]:
        widths = [width + i * self.growth for i in range(self.layers)]
        return DenseBlock(self, widths), width + self.layers * self.growth


class DenseBlock(nn.Module):
    """Norm, activation, convolution on the concatenated features, per layer."""

    def __init__(self, spec: Dense, widths: list[int]) -> None:
        super().__init__()
        act = spec.act.rstrip("_")
        self.layers = nn.ModuleList(
            nn.Sequential(norm_2d(spec.norm, w), activation(act, w), nn.Conv2d(w, spec.growth, 3, padding=1))
            for w in widths
        )

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


@dataclass(frozen=True, repr=False)
class Branches(Spec):
    """Inception: parallel convolutions of growing kernels, and the pooled input when `pool`, concatenated."""

    widths: tuple[int, ...]
    stride: int = 1
    norm: str = "bn"
    act: str = "relu"
    pool: bool = False

    def build(self, width: int) -> tuple[nn.Module, int]:
        branches: list[nn.Module] = [
            conv(width, out, 1 + 2 * i, self.stride, norm=self.norm, act=self.act)
            for i, out in enumerate(self.widths)
        ]
        if self.pool:
            branches.append(nn.MaxPool2d(3, self.stride, 1))
        return Concatenated(branches), sum(self.widths) + width * self.pool


class Concatenated(nn.Module):
    """All branches of one input, concatenated over the channels."""

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


@dataclass(frozen=True, repr=False)
class Shuffle(Spec):
    """ShuffleNetV2: one unit of two branches, then `units` that split the channels; all end in a shuffle."""

    half: int
    units: int = 1
    stride: int = 1
    act: str = "relu"

    def build(self, width: int) -> tuple[nn.Module, int]:
        first = Concatenated([self._side(width), self._main(width, self.stride)])
        parts: list[nn.Module] = [first, ChannelShuffle(2)]
        for _ in range(self.units):
            parts += [SplitUnit(self._main(self.half, 1)), ChannelShuffle(2)]
        return nn.Sequential(*parts), 2 * self.half

    def _side(self, width: int) -> nn.Sequential:
        depthwise = conv(width, width, 3, self.stride, width)
        return nn.Sequential(depthwise, conv(width, self.half, 1, act=self.act))

    def _main(self, width: int, stride: int) -> nn.Sequential:
        first, last = (conv(w, self.half, 1, act=self.act) for w in (width, self.half))
        return nn.Sequential(first, conv(self.half, self.half, 3, stride, self.half), last)


class SplitUnit(nn.Module):
    """The first half of the channels passes, the second is computed on."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        kept, moved = x.chunk(2, dim=1)
        return torch.cat((kept, self.body(moved)), dim=1)


class ChannelShuffle(nn.Module):
    """Interleave the channels of `groups` groups, by views as torchvision does."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.size()
        x = x.view(b, self.groups, c // self.groups, h, w)
        return torch.transpose(x, 1, 2).contiguous().view(b, c, h, w)


@dataclass(frozen=True, repr=False)
class ConvNext(Spec):
    """ConvNeXt block, after a norm and a strided convolution where the width or the stride changes."""

    width: int
    hidden: int = 8
    kernel: int = 5
    stride: int = 1
    scale: bool = True
    response: bool = False
    drop: float = 0.0

    def build(self, width: int) -> tuple[nn.Module, int]:
        block = ConvNextBlock(self)
        if self.stride == 1 and width == self.width:
            return block, width
        change = nn.Conv2d(width, self.width, self.stride, self.stride)
        return nn.Sequential(norm_2d("ln", width), change, block), self.width


class ConvNextBlock(nn.Module):
    """Depthwise convolution, then norm and MLP with the channels last, layer scale, residual."""

    def __init__(self, spec: ConvNext) -> None:
        super().__init__()
        width = spec.width
        self.depthwise = nn.Conv2d(width, width, spec.kernel, padding=spec.kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.expand, self.project = nn.Linear(width, spec.hidden), nn.Linear(spec.hidden, width)
        self.response = ResponseNorm(spec.hidden) if spec.response else nn.Identity()
        self.scale = nn.Parameter(torch.full((width,), 0.5)) if spec.scale else None
        self.drop = DropPath(spec.drop)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.project(self.response(F.gelu(self.expand(y))))
        y = y if self.scale is None else self.scale * y
        return x + self.drop(y.permute(0, 3, 1, 2))


@dataclass(frozen=True, repr=False)
class Upsample(Spec):
    """Twice the size, by a transposed convolution (with groups), interpolation, or a pixel shuffle."""

    width: int
    kind: str = "transposed"
    groups: int = 1

    def build(self, width: int) -> tuple[nn.Module, int]:
        match self.kind:
            case "transposed":
                return self._transposed(width), self.width * self.groups
            case "pixel":
                return nn.Sequential(conv(width, 4 * self.width, 1), nn.PixelShuffle(2)), self.width
            case _:
                corners = False if self.kind == "bilinear" else None
                resize = nn.Upsample(scale_factor=2, mode=self.kind, align_corners=corners)
                return nn.Sequential(resize, conv(width, self.width)), self.width

    def _transposed(self, width: int) -> nn.Module:
        inner, outer = (self.groups * w for w in (3, self.width))
        up = nn.ConvTranspose2d(inner, outer, 3, 2, 1, output_padding=1, groups=self.groups, bias=False)
        return nn.Sequential(conv(width, inner, 1), up, norm_2d("bn", outer))


@dataclass(frozen=True, repr=False)
class Pool(Spec):
    """Pooling by 2 ("max", "avg"), or with an overlap ("max3")."""

    kind: str = "max"

    def build(self, width: int) -> tuple[nn.Module, int]:
        pools = {"max": nn.MaxPool2d(2), "avg": nn.AvgPool2d(2), "max3": nn.MaxPool2d(3, 2, 1)}
        return pools[self.kind], width


@dataclass(frozen=True, repr=False)
class Drop(Spec):
    """Dropout of elements, or of whole channels."""

    rate: float = 0.2
    channels: bool = False

    def build(self, width: int) -> tuple[nn.Module, int]:
        return (nn.Dropout2d if self.channels else nn.Dropout)(self.rate), width
