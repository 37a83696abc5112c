"""A whole transformer: patches or tokens, layers, pooled or per-token head; `B` batch, `N` tokens."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .attention import Attention, Multihead
from .layers import DropRow, activation, norm_1d
from .net import Spec


@dataclass(frozen=True, repr=False)
class Mlp(Spec):
    """MLP: "plain", or gated by the halves of one layer ("chunk"), or gated by two layers ("pair")."""

    hidden: int
    kind: str = "plain"
    act: str = "gelu"
    drop: float = 0.0


class MlpModule(nn.Module):
    """[B, N, width] -> [B, N, width]."""

    def __init__(self, spec: Mlp, width: int) -> None:
        super().__init__()
        self.kind = spec.kind
        self.up = nn.Linear(width, spec.hidden * (2 if spec.kind == "chunk" else 1))
        self.gate = nn.Linear(width, spec.hidden, bias=False) if spec.kind == "pair" else None
        self.act = activation(spec.act, spec.hidden)
        self.drop = nn.Dropout(spec.drop)
        self.down = nn.Linear(spec.hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        if self.kind == "chunk":
            gate, y = y.chunk(2, dim=-1)
            y = self.act(gate) * y
        else:
            y = self.act(y) if self.gate is None else self.act(self.gate(x)) * y
        return self.down(self.drop(y))


@dataclass(frozen=True, repr=False)
class Layer(Spec):
    """Attention and MLP, each a residual branch.

    `order`: a norm before each branch ("pre"), after each sum ("post"), or one before both ("parallel").
    """

    attention: Attention | Multihead
    mlp: Mlp
    order: str = "pre"
    norm: str = "ln"
    scale: bool = False
    drop: float = 0.0


class LayerModule(nn.Module):
    """[B, N, width] -> [B, N, width]."""

    def __init__(self, spec: Layer, width: int, causal: bool) -> None:
        super().__init__()
        self.order = spec.order
        self.attention = spec.attention.build(width, causal)
        self.mlp = MlpModule(spec.mlp, width)
        self.norm_1 = norm_1d(spec.norm, width)
        self.norm_2 = norm_1d(spec.norm, width) if spec.order != "parallel" else None
        scales = [nn.Parameter(torch.full((width,), 0.5)) for _ in range(2)] if spec.scale else []
        self.scales = nn.ParameterList(scales)
        self.drop = DropRow(spec.drop)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.norm_2 is None:
            y = self.norm_1(x)
            return x + self._branch(0, self.attention(y, mask)) + self._branch(1, self.mlp(y))
        if self.order == "post":
            x = self.norm_1(x + self._branch(0, self.attention(x, mask)))
            return self.norm_2(x + self._branch(1, self.mlp(x)))
        x = x + self._branch(0, self.attention(self.norm_1(x), mask))
        return x + self._branch(1, self.mlp(self.norm_2(x)))

    def _branch(self, index: int, x: Tensor) -> Tensor:
        return self.drop(x * self.scales[index] if len(self.scales) else x)


@dataclass(frozen=True, repr=False)
class Patches(Spec):
    """Patch embedding of [B, 3, *size] by a strided convolution, or by a reshape and a linear layer."""

    size: tuple[int, int] = (8, 8)
    patch: int = 4
    kind: str = "conv"

    @property
    def length(self) -> int:
        """Number of patches."""
        return self.size[0] * self.size[1] // self.patch**2


class PatchEmbedding(nn.Module):
    """[B, 3, H, W] -> [B, N, width]."""

    def __init__(self, spec: Patches, width: int) -> None:
        super().__init__()
        self.patch = spec.patch
        self.conv = nn.Conv2d(3, width, spec.patch, spec.patch) if spec.kind == "conv" else None
        self.linear = nn.Linear(3 * spec.patch**2, width) if self.conv is None else None

    def forward(self, x: Tensor) -> Tensor:
        if self.conv is not None:
            return self.conv(x).flatten(2).transpose(1, 2)
        assert self.linear is not None
        b, c, h, w = x.shape
        p = self.patch
        cells = x.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5)
        return self.linear(cells.reshape(b, (h // p) * (w // p), c * p * p))


@dataclass(frozen=True, repr=False)
class Tokens(Spec):
    """Token embedding of ids [B, length]."""

    vocabulary: int = 11
    length: int = 5


@dataclass(frozen=True, repr=False)
class Transformer(Spec):
    """A transformer on images or ids; `tied` makes the token embedding the classifier.

    `pool`: read the class token or first id ("token"), average ("mean"), or give logits per token ("each").
    `mask`: "none", "causal", or "padding", which is the keyword input `mask` [B, N], true where tokens are.
    """

    width: int
    stem: Patches | Tokens
    layers: tuple[Layer, ...]
    classes: int = 3
    pool: str = "token"
    position: str = "learned"
    mask: str = "none"
    last_norm: bool = True
    tied: bool = False
    drop: float = 0.0
    batch: int = 2

    def module(self) -> nn.Module:
        return TransformerModule(self)

    def inputs(self) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        if isinstance(self.stem, Patches):
            return (torch.randn(self.batch, 3, *self.stem.size),), {}
        length = self.stem.length
        ids = torch.randint(self.stem.vocabulary, (self.batch, length))
        if self.mask != "padding":
            return (ids,), {}
        lengths = torch.randint(1, length + 1, (self.batch, 1))
        return (ids,), {"mask": torch.arange(length) < lengths}


class TransformerModule(nn.Module):
    """Image [B, 3, H, W] or ids [B, N] -> [B, classes], or [B, N, classes] when `pool` is "each"."""

    def __init__(self, spec: Transformer) -> None:
        super().__init__()
        self.pool, width = spec.pool, spec.width
        self.embed, self.head = _ends(spec)
        image = isinstance(spec.stem, Patches)
        self.token = nn.Parameter(torch.randn(1, 1, width)) if image and spec.pool == "token" else None
        self.position = Position(spec.position, spec.stem.length + (self.token is not None), width)
        self.drop = nn.Dropout(spec.drop)
        self.layers = nn.ModuleList(LayerModule(layer, width, spec.mask == "causal") for layer in spec.layers)
        self.norm = norm_1d(spec.layers[-1].norm, width) if spec.last_norm else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.embed(x)
        if self.token is not None:
            y = torch.cat((self.token.expand(y.shape[0], -1, -1), y), dim=1)
        y = self.drop(self.position(y))
        for layer in self.layers:
            y = layer(y, mask)
        return self.head(self._pooled(self.norm(y), mask))

    def _pooled(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.pool == "each":
            return x
        if self.pool == "token":
            return x[:, 0]
        if mask is None:
            return x.mean(dim=1)
        seen = mask.unsqueeze(-1).to(x.dtype)
        return (x * seen).sum(1) / seen.sum(1)


def _ends(spec: Transformer) -> tuple[nn.Module, nn.Linear]:
    """Return the embedding and the classifier."""
    if isinstance(spec.stem, Patches):
        return PatchEmbedding(spec.stem, spec.width), nn.Linear(spec.width, spec.classes)
    embed = nn.Embedding(spec.stem.vocabulary, spec.width)
    if not spec.tied:
        return embed, nn.Linear(spec.width, spec.classes)
    head = nn.Linear(spec.width, spec.stem.vocabulary, bias=False)
    head.weight = embed.weight
    return embed, head


class Position(nn.Module):
    """Adds to [B, N, width] a parameter ("learned"), a looked up table, a buffer ("sine"), or nothing."""

    def __init__(self, kind: str, length: int, width: int) -> None:
        super().__init__()
        self.kind = kind
        self.table = nn.Embedding(length, width) if kind == "table" else None
        if kind == "learned":
            self.added: Tensor = nn.Parameter(0.5 * torch.randn(1, length, width))
        elif kind == "sine":
            steps = torch.arange(length)[:, None] / 10.0 ** torch.linspace(0, 2, width)
            self.register_buffer("added", torch.sin(steps + math.pi / 7))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "none":
            return x
        if self.table is not None:
            return x + self.table(torch.arange(x.shape[1], device=x.device))
        return x + self.added
