"""Layers that several blocks share: norms, activations, channel attention, stochastic depth."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORMS_2D = ("bn", "gn", "ln", "none")
NORMS_1D = ("ln", "rms", "torch_rms")
ACTIVATIONS = ("relu", "relu_", "silu", "gelu", "hardswish", "leaky", "prelu")
CHANNEL_ATTENTION = ("none", "sigmoid", "hard", "eca")


def activation(kind: str, width: int) -> nn.Module:
    """Return the activation `kind`; "relu_" works in place and "prelu" has one slope per channel."""
    match kind:
        case "relu" | "relu_":
            return nn.ReLU(inplace=kind == "relu_")
        case "prelu":
            return nn.PReLU(width)
        case "leaky":
            return nn.LeakyReLU(0.2)
        case _:
            return {"silu": nn.SiLU, "gelu": nn.GELU, "hardswish": nn.Hardswish}[kind]()


def norm_2d(kind: str, width: int) -> nn.Module:
    """Return the norm `kind` for [B, width, H, W]; "gn" has at most 4 groups.

    They have 2 channels or more where possible: over one it would cancel the bias of the convolution before.
    """
    match kind:
        case "bn":
            return nn.BatchNorm2d(width)
        case "gn":
            groups = max(g for g in range(1, 5) if width % g == 0 and g <= max(1, width // 2))
            return nn.GroupNorm(groups, width)
        case "ln":
            return ChannelNorm(width)
        case _:
            return nn.Identity()


def norm_1d(kind: str, width: int) -> nn.Module:
    """Return the norm `kind` over the last dim."""
    return {"ln": nn.LayerNorm, "rms": RootMeanSquareNorm, "torch_rms": nn.RMSNorm}[kind](width)


def conv(
    width: int,
    out: int,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    norm: str = "bn",
    act: str = "none",
) -> nn.Sequential:
    """Return convolution, norm, activation: [B, width, H, W] -> [B, out, H / stride, W / stride]."""
    layers: list[nn.Module] = [
        nn.Conv2d(width, out, kernel, stride, kernel // 2, groups=groups, bias=norm != "bn"),
        norm_2d(norm, out),
    ]
    if act != "none":
        layers.append(activation(act, out))
    return nn.Sequential(*layers)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of [B, C, H, W]."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class RootMeanSquareNorm(nn.Module):
    """RMSNorm written out as language models do, with an upcast."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * y.to(x.dtype)


class ResponseNorm(nn.Module):
    """Global response normalization of ConvNeXt V2, on [B, H, W, C]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        energy = x.norm(p=2, dim=(1, 2), keepdim=True)
        share = energy / (energy.mean(-1, keepdim=True) + 1e-6)
        return x + torch.addcmul(self.bias, self.weight, x * share)


class SqueezeExcite(nn.Module):
    """Channel gates from the pooled features: SiLU and sigmoid, or "hard" as in MobileNetV3."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.reduce = nn.Conv2d(width, width // 3 + 2, 1)
        self.expand = nn.Conv2d(width // 3 + 2, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "hard":
            return x * F.hardsigmoid(self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))
        return x * self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()


class EfficientAttention(nn.Module):
    """ECA: a convolution along the channels, so that none can be dropped without moving its neighbors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        gates = self.conv(x.mean((2, 3)).unsqueeze(1)).sigmoid()
        return x * gates.transpose(1, 2).unsqueeze(-1)


def channel_attention(kind: str, width: int) -> nn.Module:
    """Return the channel attention `kind`, identity for "none"."""
    if kind == "none":
        return nn.Identity()
    return EfficientAttention() if kind == "eca" else SqueezeExcite(width, kind)


class DropPath(nn.Module):
    """Stochastic depth per sample, drawn in place as timm does."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.rate or not self.training:
            return x
        kept = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * kept.div_(1 - self.rate)


class DropRow(DropPath):
    """Stochastic depth per sample, by a factory and a floor as older models do."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.rate or not self.training:
            return x
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        kept = torch.floor(1 - self.rate + torch.rand(shape, dtype=x.dtype, device=x.device))
        return x / (1 - self.rate) * kept
