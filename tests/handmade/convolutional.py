"""CNNs, all on images [2, 3, 8, 8]."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .fixed import fixed


def conv_norm(width: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(width, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out))


def pooled_head(width: int, classes: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


class _Basic(nn.Module):
    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv_norm(width, out, 3, stride), conv_norm(out, out)
        self.downsample = conv_norm(width, out, 1, stride) if stride != 1 or width != out else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.conv2(F.relu(self.conv1(x))) + shortcut)


class _ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm(3, 8), nn.ReLU())
        self.stage1 = nn.Sequential(_Basic(8, 8, 1), _Basic(8, 8, 1))
        self.stage2 = nn.Sequential(_Basic(8, 16, 2), _Basic(16, 16, 1))
        self.head = pooled_head(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        return self.stage2(self.stage1(self.stem(x)))


@fixed
def resnet() -> tuple[nn.Module, Tensor]:
    """Two stages of two basic blocks, of widths 8 and 16, the second stage with a downsampling shortcut."""
    return _ResNet(), torch.randn(2, 3, 8, 8)


class _Headless(_ResNet):
    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


@fixed
def headless() -> tuple[nn.Module, Tensor]:
    """`resnet` without its head: the stream of stage2 is the output, so its width cannot change."""
    module = _Headless()
    del module.head
    return module, torch.randn(2, 3, 8, 8)


@fixed
def plain_cnn() -> tuple[nn.Module, Tensor]:
    """Convolutions of widths 6, 8 and 8 without shortcuts, with a bias and without a norm in the middle."""
    middle = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(inplace=True))
    last = nn.Sequential(conv_norm(8, 8), nn.ReLU(inplace=True))
    return nn.Sequential(conv_norm(3, 6), nn.ReLU(), middle, last, pooled_head(8)), torch.randn(2, 3, 8, 8)


@fixed
def grouped() -> tuple[nn.Module, Tensor]:
    """Convolutions in 4 groups (12 to 8 channels) and in 2 groups (8 to 6)."""
    body = nn.Sequential(
        conv_norm(3, 12), nn.ReLU(), conv_norm(12, 8, groups=4), nn.ReLU(), conv_norm(8, 6, groups=2)
    )
    return nn.Sequential(body, nn.ReLU(), pooled_head(6)), torch.randn(2, 3, 8, 8)


class _SqueezeExcite(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()


class _Inverted(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.expand, self.depthwise = conv_norm(width, inner, 1), conv_norm(inner, inner, groups=inner)
        self.gates, self.project = _SqueezeExcite(inner), conv_norm(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.depthwise(F.silu(self.expand(x))))
        return x + self.project(self.gates(y))


@fixed
def depthwise_se() -> tuple[nn.Module, Tensor]:
    """An inverted residual with squeeze and excite (8, 20, 8), then a depthwise convolution, 8 to 16."""
    doubled = nn.Sequential(conv_norm(8, 16, groups=8), nn.ReLU())
    return nn.Sequential(conv_norm(3, 8), _Inverted(8, 20), doubled, pooled_head(16)), torch.randn(2, 3, 8, 8)


class _Dense(nn.Module):
    def __init__(self, width: int, growth: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(width + i * growth), nn.ReLU(), conv_norm(width + i * growth, growth)
            )
            for i in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat((x, layer(x)), dim=1)
        return x


@fixed
def dense() -> tuple[nn.Module, Tensor]:
    """A DenseNet block of three layers that each add 4 channels to 6, and a transition."""
    transition = nn.Sequential(nn.Conv2d(18, 10, 1), nn.AvgPool2d(2))
    return nn.Sequential(conv_norm(3, 6), _Dense(6, 4, 3), transition, pooled_head(10)), torch.randn(
        2, 3, 8, 8
    )


class _ShuffleUnit(nn.Module):
    def __init__(self, half: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_norm(half, half, 1), nn.ReLU(), conv_norm(half, half, groups=half))

    def forward(self, x: Tensor) -> Tensor:
        kept, moved = x.chunk(2, dim=1)
        b, c, h, w = x.shape
        y = torch.cat((kept, self.body(moved)), dim=1).view(b, 2, c // 2, h, w)
        return y.transpose(1, 2).contiguous().view(b, c, h, w)


@fixed
def shuffle() -> tuple[nn.Module, Tensor]:
    """Two ShuffleNetV2 units on 12 channels: split, compute on one half, concatenate, interleave."""
    return nn.Sequential(conv_norm(3, 12), _ShuffleUnit(6), _ShuffleUnit(6), pooled_head(12)), torch.randn(
        2, 3, 8, 8
    )


@fixed
def flatten_cnn() -> tuple[nn.Module, Tensor]:
    """A 4x4 map of 6 channels, flattened into a linear layer of 96 inputs."""
    features = nn.Sequential(conv_norm(3, 6, stride=2), nn.ReLU())
    head = nn.Sequential(nn.Linear(96, 10), nn.ReLU(), nn.Linear(10, 5))
    return nn.Sequential(features, nn.Flatten(), head), torch.randn(2, 3, 8, 8)
