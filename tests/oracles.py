"""Static networks of any width, and how to cut their weights by hand: the oracle of width slicing.

Every network takes its widths as arguments, so the narrow network is the same class with smaller numbers.
Which positions a narrow tensor takes from the wide one is written here as plain index arithmetic; nothing of
the library is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Positions = Sequence[int] | range | None
"""Positions along one axis; None keeps all."""
Cut = Mapping[str, tuple[Positions, ...]]
"""Tensor name -> positions of its leading axes; a name may stop at a dot to speak of all tensors under it."""
M = TypeVar("M", bound=nn.Module)


def positions_of(cut: Cut, name: str) -> tuple[Positions, ...]:
    """The entry of a tensor: its own, or the one of the longest prefix."""
    found = [key for key in cut if name == key or (key.endswith(".") and name.startswith(key))]
    return cut[max(found, key=len)] if found else ()


def cut_tensor(tensor: Tensor, axes: tuple[Positions, ...]) -> Tensor:
    """The positions in `axes` of the leading axes of `tensor`."""
    for axis, positions in enumerate(axes[: tensor.dim()]):
        if positions is not None:
            tensor = tensor[(slice(None),) * axis + (torch.tensor(list(positions)),)]
    return tensor


def narrowed(narrow: M, tensors: Mapping[str, Tensor], cut: Cut) -> M:
    """`narrow` with its parts of the wide network's `tensors` (parameters and buffers)."""
    wanted = narrow.state_dict()
    state = {name: cut_tensor(tensors[name], positions_of(cut, name)).clone() for name in wanted}
    narrow.load_state_dict(state)
    return narrow


def within(positions: Sequence[int], size: int) -> list[int]:
    """Positions of blocks of `size` channels each."""
    return [p * size + i for p in positions for i in range(size)]


# -- a residual CNN with batch norms ----------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width: int, inner: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.norm2 = nn.Conv2d(inner, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.short = nn.Conv2d(width, out, 1, stride) if stride != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + (x if self.short is None else self.short(x)))


class Residual(nn.Module):
    """Widths: stem (and stream), inner of the first block, inner and stream of the second."""

    def __init__(self, stem: int = 8, inner: int = 12, second: int = 16, out: int = 20) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, stem, 3, padding=1), nn.BatchNorm2d(stem)
        self.a, self.b = Block(stem, inner, stem, 1), Block(stem, second, out, 2)
        self.head = nn.Linear(out, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(F.relu(self.norm(self.conv(x)))))
        return self.head(y.mean((2, 3)))

    @staticmethod
    def cut(stem: int, inner: int, second: int, out: int) -> Cut:
        s, i, m, o = range(stem), range(inner), range(second), range(out)
        return {
            "conv.": (s,), "norm.": (s,),
            "a.conv1.": (i, s), "a.norm1.": (i,), "a.conv2.": (s, i), "a.norm2.": (s,),
            "b.conv1.": (m, s), "b.norm1.": (m,), "b.conv2.": (o, m), "b.norm2.": (o,),
            "b.short.weight": (o, s), "b.short.bias": (o,), "head.weight": (None, o),
        }  # fmt: skip


# -- grouped and depthwise convolutions with channel gates ------------------------------------------


class Grouped(nn.Module):
    """Groups of `fan_in` to `fan_out` channels, gates of `hidden`, `multiplier` outputs per channel."""

    def __init__(
        self, groups: int = 4, fan_in: int = 3, fan_out: int = 2, hidden: int = 6, multiplier: int = 3
    ) -> None:
        super().__init__()
        c, d = groups * fan_in, groups * fan_out
        self.stem, self.norm = nn.Conv2d(3, c, 3, padding=1), nn.BatchNorm2d(c)
        self.grouped, self.norm2 = nn.Conv2d(c, d, 3, padding=1, groups=groups), nn.BatchNorm2d(d)
        self.squeeze, self.excite = nn.Conv2d(d, hidden, 1), nn.Conv2d(hidden, d, 1)
        self.depthwise = nn.Conv2d(d, d * multiplier, 3, padding=1, groups=d)
        self.head = nn.Linear(d * multiplier, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.norm2(self.grouped(F.relu(self.norm(self.stem(x))))))
        y = y * self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))).sigmoid()
        return self.head(F.relu(self.depthwise(y)).mean((2, 3)))

    @staticmethod
    def cut(groups: range, fan_in: range, fan_out: range, hidden: int, multiplier: int) -> Cut:
        """Which groups, which inputs and outputs of each group."""
        c = [g * 3 + i for g in groups for i in fan_in]
        d = [g * 2 + i for g in groups for i in fan_out]
        wide, h = [at * 3 + i for at in d for i in range(multiplier)], range(hidden)
        return {
            "stem.": (c,), "norm.": (c,), "grouped.weight": (d, fan_in), "grouped.bias": (d,), "norm2.": (d,),
            "squeeze.weight": (h, d), "squeeze.bias": (h,), "excite.weight": (d, h), "excite.bias": (d,),
            "depthwise.": (wide,), "head.weight": (None, wide),
        }  # fmt: skip


# -- concatenated features --------------------------------------------------------------------------


class Dense(nn.Module):
    """Two layers that each add channels to all before; every norm reads a concatenation."""

    def __init__(self, stem: int = 6, first: int = 4, second: int = 5, out: int = 7) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, stem, 3, padding=1)
        self.norm1, self.conv1 = nn.BatchNorm2d(stem), nn.Conv2d(stem, first, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(stem + first), nn.Conv2d(stem + first, second, 3, padding=1)
        self.norm3, self.conv3 = (
            nn.BatchNorm2d(stem + first + second),
            nn.Conv2d(stem + first + second, out, 1),
        )
        self.head = nn.Linear(out, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat((x, self.conv1(F.relu(self.norm1(x)))), 1)
        x = torch.cat((x, self.conv2(F.relu(self.norm2(x)))), 1)
        return self.head(F.relu(self.conv3(F.relu(self.norm3(x)))).mean((2, 3)))

    @staticmethod
    def cut(stem: int, first: int, second: int, out: int) -> Cut:
        s, f, g, o = range(stem), range(first), range(second), range(out)
        two = [*s, *(6 + i for i in f)]
        three = [*two, *(10 + i for i in g)]
        return {
            "stem.": (s,), "norm1.": (s,), "conv1.weight": (f, s), "conv1.bias": (f,), "norm2.": (two,),
            "conv2.weight": (g, two), "conv2.bias": (g,), "norm3.": (three,), "conv3.weight": (o, three),
            "conv3.bias": (o,), "head.weight": (None, o),
        }  # fmt: skip


# -- a vision transformer with fused qkv ------------------------------------------------------------


class VitBlock(nn.Module):
    def __init__(self, width: int, heads: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.dim = heads, dim
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * heads * dim), nn.Linear(heads * dim, width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*qkv.unbind(0), scale=0.5)
        x = x + self.proj(y.transpose(1, 2).reshape(b, n, self.heads * self.dim))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Vit(nn.Module):
    """4 patches and a class token, two blocks of 4 heads of 4; SDPA's scale is written out: 1 / sqrt(4)."""

    def __init__(self, width: int = 16, heads: int = 4, dim: int = 4, hidden: int = 24) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.blocks = nn.Sequential(*(VitBlock(width, heads, dim, hidden) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patch(x).flatten(2).transpose(1, 2)
        y = self.blocks(torch.cat((self.token.expand(y.shape[0], -1, -1), y), 1))
        return self.head(self.norm(y)[:, 0])

    @staticmethod
    def cut(width: int, heads: range, dim: range, hidden: int) -> Cut:
        c, h = range(width), range(hidden)
        columns = [head * 4 + d for head in heads for d in dim]
        rows = [part * 16 + at for part in range(3) for at in columns]
        cut: dict[str, tuple[Positions, ...]] = {
            "patch.": (c,), "token": (None, None, c), "norm.": (c,), "head.weight": (None, c),
        }  # fmt: skip
        for block in ("blocks.0", "blocks.1"):
            cut |= {
                f"{block}.norm1.": (c,), f"{block}.norm2.": (c,),
                f"{block}.qkv.weight": (rows, c), f"{block}.qkv.bias": (rows,),
                f"{block}.proj.weight": (c, columns), f"{block}.proj.bias": (c,),
                f"{block}.fc1.weight": (h, c), f"{block}.fc1.bias": (h,),
                f"{block}.fc2.weight": (c, h), f"{block}.fc2.bias": (c,),
            }  # fmt: skip
        return cut


# -- a decoder with grouped queries -----------------------------------------------------------------


class Decoder(nn.Module):
    """`heads` key and value heads of 4, `share` query heads on each, gated MLP, RMS norms, tied embedding."""

    def __init__(self, width: int = 12, heads: int = 4, share: int = 2, hidden: int = 20) -> None:
        super().__init__()
        self.heads, self.share = heads, share
        self.embed = nn.Embedding(11, width)
        self.norm1, self.norm2 = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))
        self.q = nn.Linear(width, heads * share * 4, bias=False)
        self.k, self.v = (nn.Linear(width, heads * 4, bias=False) for _ in "kv")
        self.o = nn.Linear(heads * share * 4, width, bias=False)
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in "gu")
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + self.o(self._attend(_rms(x) * self.norm1))
        y = _rms(x) * self.norm2
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return x @ self.embed.weight.T

    def _attend(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.heads * self.share, 4).transpose(1, 2)
        k, v = (layer(x).view(b, n, self.heads, 4).transpose(1, 2) for layer in (self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5, enable_gqa=True)
        return y.transpose(1, 2).reshape(b, n, self.heads * self.share * 4)

    @staticmethod
    def cut(width: int, heads: range, share: range, hidden: int) -> Cut:
        c, h = range(width), range(hidden)
        keys = within(heads, 4)
        queries = within([head * 2 + s for head in heads for s in share], 4)
        return {
            "embed.": (None, c), "norm1": (c,), "norm2": (c,), "q.": (queries, c), "k.": (keys, c),
            "v.": (keys, c), "o.": (c, queries), "gate.": (h, c), "up.": (h, c), "down.": (c, h),
        }  # fmt: skip


def _rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name, detached."""
    named: list[tuple[str, Any]] = [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]
    return {name: tensor.detach() for name, tensor in named}
