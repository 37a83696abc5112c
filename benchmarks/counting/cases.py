"""Networks on which counters of multiply-accumulates differ, and some on which they agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.counting import truth
from dyncompile import zoo

Inputs = tuple[Tensor, ...] | dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A network: how it is made, with inputs of `rows` samples, and its MACs per sample."""

    make: Callable[[int], tuple[nn.Module, Inputs]]
    macs: int


def named(spec: str) -> Callable[[int], tuple[nn.Module, Inputs]]:
    """A model of the zoo."""

    def make(rows: int) -> tuple[nn.Module, Inputs]:
        source = zoo.load(spec, batch=rows)
        return source.model, source.args or source.kwargs

    return make


def local(
    build: Callable[[], nn.Module], *shapes: tuple[int, ...]
) -> Callable[[int], tuple[nn.Module, Inputs]]:
    """A network of this file, with inputs of these shapes per sample."""

    def make(rows: int) -> tuple[nn.Module, Inputs]:
        return build().eval(), tuple(torch.randn(rows, *shape) for shape in shapes)

    return make


class Standardized(nn.Module):
    """A convolution that is called as a function, on a weight that is normalized first."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(48, 16, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 32, 28, 28] to [B, 48, 28, 28], in two groups."""
        weight = F.layer_norm(self.weight, self.weight.shape[1:])
        return F.conv2d(x, weight, padding=1, groups=2)


class Crossed(nn.Module):
    """Cross attention whose keys come from a narrower stream."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(128, 4, kdim=96, vdim=96, batch_first=True)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """[B, 20, 128] and [B, 50, 96] to [B, 20, 128]."""
        return self.attention(x, context, context)[0]


class Summed(nn.Module):
    """Attention in Einstein's notation."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(64, 192)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 30, 64] to the same shape, four heads."""
        query, key, value = (part.unflatten(-1, (4, 16)) for part in self.qkv(x).chunk(3, -1))
        weights = torch.einsum("bqhd,bkhd->bhqk", query, key).softmax(-1)
        return torch.einsum("bhqk,bkhd->bqhd", weights, value).flatten(2)


class Recurrent(nn.Module):
    """An LSTM and a linear layer on its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(32, 64, batch_first=True), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 20, 32] to [B, 10]."""
        return self.head(self.lstm(x)[0][:, -1])


def _encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(256, 8, 1024, batch_first=True), 2)


def _decoder() -> nn.Module:
    first = nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1)
    return nn.Sequential(
        first, nn.ReLU(), nn.ConvTranspose2d(32, 32, 2, stride=2, groups=8), nn.Upsample(scale_factor=2)
    )


def _volumes() -> nn.Module:
    return nn.Sequential(nn.Conv3d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 8, (1, 3, 3), groups=4))


_LLAMA = "hidden_size=256&intermediate_size=512&num_hidden_layers=2&vocab_size=1000&num_attention_heads=8"

CASES: Mapping[str, Case] = {
    "ResNet-18": Case(named("torchvision:resnet18"), truth.resnet18()),
    "ResNeXt-50 32x4d (grouped)": Case(named("torchvision:resnext50_32x4d"), truth.resnext50()),
    "MobileNetV2 (depthwise)": Case(named("torchvision:mobilenet_v2"), truth.mobilenet_v2()),
    "ViT-B/16 (timm, fused attention)": Case(named("timm:vit_base_patch16_224"), truth.vit()),
    "ViT-B/16 (torchvision, `nn.MultiheadAttention`)": Case(named("torchvision:vit_b_16"), truth.vit()),
    "Swin-T (timm, windows)": Case(named("timm:swin_tiny_patch4_window7_224"), truth.swin_tiny()),
    "Llama, 2 layers (grouped queries)": Case(
        named(f"hf:LlamaForCausalLM?{_LLAMA}&num_key_value_heads=2"), truth.llama(16, 256, 512, 2, 8, 2, 1000)
    ),
    "`nn.TransformerEncoder` (fast path)": Case(
        local(_encoder, (64, 256)), 2 * truth.encoder_layer(64, 256, 1024)
    ),
    "cross attention, narrower keys": Case(
        local(Crossed, (20, 128), (50, 96)),
        2 * 20 * 128**2 + 2 * 50 * 96 * 128 + truth.attention(20, 50, 128),
    ),
    "attention by `einsum`": Case(local(Summed, (30, 64)), 30 * 64 * 192 + truth.attention(30, 30, 64)),
    "`F.conv2d` on a computed weight": Case(
        local(Standardized, (32, 28, 28)), truth.conv(32, 48, 9, 28**2, groups=2)
    ),
    "transposed convolutions": Case(
        local(_decoder, (64, 14, 14)), truth.transposed(((64, 32, 16, 14**2, 1), (32, 32, 4, 28**2, 8)))
    ),
    "3D convolutions": Case(
        local(_volumes, (4, 6, 12, 12)), truth.conv(4, 8, 27, 864) + truth.conv(8, 8, 9, 600, groups=4)
    ),
    "LSTM": Case(local(Recurrent, (20, 32)), truth.lstm(32, 64, 20) + 64 * 10),
}
"""By the name that the table shows."""
