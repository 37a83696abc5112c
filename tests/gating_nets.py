"""Residual networks that are run by hand with branches left out, scaled or made of fewer channels.

Every network names its residual parts, ``y = after(kept(x) + gain * branch(x))``, and `by_hand` adds them up
in plain PyTorch: a gain of 0 leaves the branch out altogether. Widths are arguments, so a network with
channels removed is the same class with smaller numbers (`tests.oracles.narrowed`). Nothing of the library is
used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Function = Callable[[Tensor], Tensor]


def itself(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Part:
    """``after(kept(x) + branch(x))``."""

    branch: Function
    kept: Function = itself
    after: Function = itself

    def __call__(self, x: Tensor, gain: float) -> Tensor:
        if gain == 0:
            return self.after(self.kept(x))
        return self.after(self.kept(x) + gain * self.branch(x))


class Residual(nn.Module):
    """What is before the parts, the parts by name, and what comes after them.

    Those in `nested` lie in branches of others, which read their gains from `gains`.
    """

    nested: tuple[str, ...] = ()

    def before(self, *inputs: Tensor) -> Tensor:
        raise NotImplementedError

    def parts(self, gains: Mapping[str, float], *inputs: Tensor) -> dict[str, Part]:
        raise NotImplementedError

    def behind(self, y: Tensor, stem: Tensor) -> Tensor:
        raise NotImplementedError


def by_hand(net: Residual, inputs: Sequence[Tensor], gains: Mapping[str, float]) -> Tensor:
    """The network with its parts scaled; those that `gains` does not name run as they are."""
    y = stem = net.before(*inputs)
    parts = net.parts(gains, *inputs)
    assert set(gains) <= {*parts, *net.nested}
    for name, part in parts.items():
        y = part(y, gains.get(name, 1.0))
    return net.behind(y, stem)


# -- a residual CNN that writes in place -------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width: int, inner: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.norm2 = nn.Conv2d(inner, out, 3, 1, 1), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        projection = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.down = projection if stride != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.down is None else self.down(x)
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        out += identity
        return self.relu(out)

    def part(self) -> Part:
        return Part(
            branch=lambda x: self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))),
            kept=itself if self.down is None else self.down,
            after=F.relu,
        )


class Cnn(Residual):
    """Three blocks behind a stem without ReLU; the second one halves the map."""

    def __init__(self, a: int = 12, b: int = 10, c: int = 9) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.a, self.b, self.c = Block(8, a, 8, 1), Block(8, b, 16, 2), Block(16, c, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.norm(self.conv(x))
        return self.behind(self.c(self.b(self.a(stem))), stem)

    def before(self, *inputs: Tensor) -> Tensor:
        return self.norm(self.conv(inputs[0]))

    def parts(self, gains: Mapping[str, float], *inputs: Tensor) -> dict[str, Part]:
        return {name: block.part() for name, block in (("a", self.a), ("b", self.b), ("c", self.c))}

    def behind(self, y: Tensor, stem: Tensor) -> Tensor:
        return self.head(y.mean((2, 3)))


class Reread(Cnn):
    """The stem is read at the end again: a block that writes into it when it is skipped is found out."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(24, 5)

    def behind(self, y: Tensor, stem: Tensor) -> Tensor:
        return self.head(torch.cat((y.mean((2, 3)), stem.mean((2, 3))), 1))


# -- transformers ------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Fused queries, keys and values; SDPA's scale is written out: 1 / sqrt(4)."""

    def __init__(self, width: int, heads: int, dim: int = 4) -> None:
        super().__init__()
        self.heads, self.dim = heads, dim
        self.qkv, self.proj = nn.Linear(width, 3 * heads * dim), nn.Linear(heads * dim, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*qkv.unbind(0), scale=0.5)
        return self.proj(y.transpose(1, 2).reshape(b, n, self.heads * self.dim))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class GatedMlp(nn.Module):
    """Both halves of one projection: a hidden unit is a row of each."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.fc1, self.fc2 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.fc1(x).chunk(2, -1)
        return self.fc2(F.silu(gate) * up)


class DropPath(nn.Module):
    """Stochastic depth: in training a row's branch is left out at random."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * x.new_empty((x.shape[0], 1, 1)).bernoulli_(0.7) / 0.7


class PreNormBlock(nn.Module):
    def __init__(self, heads: int, hidden: int, gated: bool) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(12), Attention(12, heads)
        self.norm2, self.mlp = nn.LayerNorm(12), (GatedMlp if gated else Mlp)(12, hidden)
        self.drop = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attn(self.norm1(x)))
        return x + self.drop(self.mlp(self.norm2(x)))


class PreNorm(Residual):
    """Images in 4 patches, two blocks: 3 heads of 4 and an MLP, 4 heads of 4 and a gated MLP."""

    def __init__(self, heads: tuple[int, int] = (3, 4), hidden: tuple[int, int] = (10, 7)) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, 4)
        blocks = zip(heads, hidden, (False, True), strict=True)
        self.blocks = nn.Sequential(*(PreNormBlock(*block) for block in blocks))
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(y)).mean(1))

    def before(self, *inputs: Tensor) -> Tensor:
        return self.patch(inputs[0]).flatten(2).transpose(1, 2)

    def parts(self, gains: Mapping[str, float], *inputs: Tensor) -> dict[str, Part]:
        found: dict[str, Part] = {}
        for i, block in enumerate(self.blocks):
            assert isinstance(block, PreNormBlock)
            found[f"blocks.{i}.attn"] = Part(lambda x, b=block: b.drop(b.attn(b.norm1(x))))
            found[f"blocks.{i}.mlp"] = Part(lambda x, b=block: b.drop(b.mlp(b.norm2(x))))
        return found

    def behind(self, y: Tensor, stem: Tensor) -> Tensor:
        return self.head(self.norm(y).mean(1))


class PostNormBlock(nn.Module):
    """Separate projections, a mask, dropout on every branch, norms after the sums."""

    def __init__(self, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(8, heads * 4) for _ in "qkv")
        self.o, self.norm1 = nn.Linear(heads * 4, 8), nn.LayerNorm(8)
        self.fc1, self.fc2, self.norm2 = nn.Linear(8, hidden), nn.Linear(hidden, 8), nn.LayerNorm(8)
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(self.attend(x, mask) + x)
        return self.norm2(self.feed(x) + x)

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (layer(x).view(b, n, self.heads, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.5)
        return self.drop(self.o(y.transpose(1, 2).reshape(b, n, self.heads * 4)))

    def feed(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(F.gelu(self.fc1(x))))


class PostNorm(Residual):
    """Token ids [B, 6] and how many of them count [B]; two blocks."""

    def __init__(self, heads: int = 3, hidden: int = 10) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.blocks = nn.ModuleList(PostNormBlock(heads, hidden) for _ in range(2))
        self.head = nn.Linear(8, 5)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        y, mask = self.norm(self.embed(ids)), self.mask(lengths)
        for block in self.blocks:
            y = block(y, mask)
        return self.head(y[:, 0])

    def mask(self, lengths: Tensor) -> Tensor:
        return (torch.arange(6) < lengths[:, None])[:, None, None, :]

    def before(self, *inputs: Tensor) -> Tensor:
        return self.norm(self.embed(inputs[0]))

    def parts(self, gains: Mapping[str, float], *inputs: Tensor) -> dict[str, Part]:
        mask, found = self.mask(inputs[1]), dict[str, Part]()
        for i, block in enumerate(self.blocks):
            assert isinstance(block, PostNormBlock)
            found[f"blocks.{i}"] = Part(lambda x, b=block: b.attend(x, mask), after=block.norm1)
            found[f"blocks.{i}#2"] = Part(block.feed, after=block.norm2)
        return found

    def behind(self, y: Tensor, stem: Tensor) -> Tensor:
        return self.head(y[:, 0])


# -- where rows lie elsewhere ------------------------------------------------------------------------


class SequenceFirst(Residual):
    """Tokens [B, 5, 6] that run as [5, B, 8]: rows lie in axis 1. The second sum counts its branch half."""

    def __init__(self, hidden: tuple[int, int] = (10, 7)) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8))
        self.first, self.second = (Mlp(8, n) for n in hidden)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).transpose(0, 1)
        y = y + self.first(y)
        y = torch.add(y, self.second(y), alpha=0.5)
        return self.head(y.transpose(0, 1))

    def before(self, *inputs: Tensor) -> Tensor:
        return self.stem(inputs[0]).transpose(0, 1)

    def parts(self, gains: Mapping[str, float], *inputs: Tensor) -> dict[str, Part]:
        return {"first": Part(self.first), "second": Part(lambda x: 0.5 * self.second(x))}

    def behind(self, y: Tensor, stem: Tensor) -> Tensor:
        return self.head(y.transpose(0, 1))


class Windows(Residual):
    """Maps [B, 4, 4, 8] that run as four windows each, [4 B, 4, 8]: a row is four positions of axis 0."""

    def __init__(self, heads: int = 2, hidden: int = 9, dim: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8))
        self.attn, self.mlp = Attention(8, heads, dim), Mlp(8, hidden)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.split(self.stem(x))
        y = y + self.attn(y)
        y = y + self.mlp(y)
        return self.head(y.view(-1, 16, 8).mean(1))

    @staticmethod
    def split(x: Tensor) -> Tensor:
        return x.view(-1, 2, 2, 2, 2, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 8)

    def before(self, *inputs: Tensor) -> Tensor:
        return self.split(self.stem(inputs[0]))

    def parts(self, gains: Mapping[str, float], *inputs: Tensor) -> dict[str, Part]:
        return {"attn": Part(self.attn), "mlp": Part(self.mlp)}

    def behind(self, y: Tensor, stem: Tensor) -> Tensor:
        return self.head(y.view(-1, 16, 8).mean(1))


class Broadcast(Residual):
    """What branches give is the same for all positions: it has one, where the sum has five."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = (y + self.first(y.mean(1, keepdim=True))).relu().transpose(0, 1)
        y = y + self.second(y.mean(0, keepdim=True))
        return self.behind(y, y)

    def before(self, *inputs: Tensor) -> Tensor:
        return self.stem(inputs[0])

    def parts(self, gains: Mapping[str, float], *inputs: Tensor) -> dict[str, Part]:
        return {
            "first": Part(
                lambda x: self.first(x.mean(1, keepdim=True)), after=lambda y: y.relu().transpose(0, 1)
            ),
            "second": Part(lambda x: self.second(x.mean(0, keepdim=True))),
        }

    def behind(self, y: Tensor, stem: Tensor) -> Tensor:
        return self.head(y.relu().transpose(0, 1))


# -- whose memory it is ------------------------------------------------------------------------------


class Nested(Residual):
    """Branches in a branch: one starts where the outer one starts, one lies in its middle."""

    nested = ("early", "late")

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.early, self.up, self.late, self.down = (
            nn.Linear(*size) for size in ((8, 8), (8, 10), (10, 10), (10, 8))
        )
        self.last, self.head = Mlp(8, 7), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).relu()
        z = self.up(y + self.early(y).relu()).relu()
        y = y + self.down(z + self.late(z).relu())
        return self.head(y + self.last(y))

    def before(self, *inputs: Tensor) -> Tensor:
        return self.stem(inputs[0]).relu()

    def parts(self, gains: Mapping[str, float], *inputs: Tensor) -> dict[str, Part]:
        early, late = Part(lambda y: self.early(y).relu()), Part(lambda y: self.late(y).relu())

        def outer(y: Tensor) -> Tensor:
            z = self.up(early(y, gains.get("early", 1.0))).relu()
            return self.down(late(z, gains.get("late", 1.0)))

        return {"model": Part(outer), "last": Part(self.last)}

    def behind(self, y: Tensor, stem: Tensor) -> Tensor:
        return self.head(y)


class TwoMlps(Residual):
    """Two branches on what `before` gives; what it was is read at the end once more."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Linear(6, 8), Mlp(8, 9), Mlp(8, 7)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        stem = y = self.before(x)
        y = y + self.first(y)
        y = y + self.second(y)
        return self.behind(y, stem)

    def before(self, *inputs: Tensor) -> Tensor:
        return self.stem(inputs[0]).relu()

    def parts(self, gains: Mapping[str, float], *inputs: Tensor) -> dict[str, Part]:
        return {"first": Part(self.first), "second": Part(self.second)}

    def behind(self, y: Tensor, stem: Tensor) -> Tensor:
        return self.head(y)


class Viewed(TwoMlps):
    """A view that is made before the first branch is read behind the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        view = y.transpose(1, 2)[:, :, ::2]
        y = y + self.first(y)
        y = y + self.second(y)
        return self.head(torch.cat((y.mean(1), view.mean(2)), 1))

    def behind(self, y: Tensor, stem: Tensor) -> Tensor:
        return self.head(torch.cat((y.mean(1), stem[:, ::2].mean(1)), 1))


class Written(TwoMlps):
    """Sums are written into, by what is no ReLU; what they started from is read at the end again."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.before(x)
        y = F.silu(stem + self.first(stem), inplace=True)
        y = y + self.second(y)
        y *= 0.5
        return self.behind(y, stem)

    def parts(self, gains: Mapping[str, float], *inputs: Tensor) -> dict[str, Part]:
        return {"first": Part(self.first, after=F.silu), "second": Part(self.second, after=lambda y: 0.5 * y)}

    def behind(self, y: Tensor, stem: Tensor) -> Tensor:
        return self.head(torch.cat((y.mean(1), stem.mean(1)), 1))


class OnInput(TwoMlps):
    """The stream is a view of the input, [B, 8, 5] seen as [B, 5, 8]."""

    def before(self, *inputs: Tensor) -> Tensor:
        return inputs[0].transpose(1, 2)


class Steps(TwoMlps):
    """What is returned holds the stream at every step."""

    def forward(self, x: Tensor) -> Any:
        stem = self.before(x)
        middle = stem + self.first(stem)
        last = middle + self.second(middle)
        return {"steps": [stem, middle, last], "logits": self.head(last)}


class Placed(Mlp):
    """An MLP that tells positions apart."""

    def __init__(self) -> None:
        super().__init__(8, 9)
        self.place = nn.Parameter(torch.randn(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.place)


class Expanded(TwoMlps):
    """All five positions are one memory, until a branch tells them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Placed()

    def before(self, *inputs: Tensor) -> Tensor:
        return self.stem(inputs[0]).relu().mean(1, keepdim=True).expand(-1, 5, -1)


# -- channels beside each other ----------------------------------------------------------------------


class SqueezeExcite(nn.Module):
    """An inverted residual: expand, depthwise, channel gates, project."""

    def __init__(self, hidden: int, squeezed: int) -> None:
        super().__init__()
        self.expand, self.norm1 = nn.Conv2d(6, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False)
        self.norm2 = nn.BatchNorm2d(hidden)
        self.squeeze, self.excite = nn.Conv2d(hidden, squeezed, 1), nn.Conv2d(squeezed, hidden, 1)
        self.project, self.norm3 = nn.Conv2d(hidden, 6, 1, bias=False), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.norm1(self.expand(x)))
        y = F.silu(self.norm2(self.depthwise(y)))
        y = y * self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))).sigmoid()
        return x + self.norm3(self.project(y))


class Inverted(nn.Module):
    def __init__(self, hidden: int = 14, squeezed: int = 5) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 6, 3, padding=1), SqueezeExcite(hidden, squeezed)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)).mean((2, 3)))


class Branches(nn.Module):
    """Two convolutions side by side, whose channels meet in a concatenation."""

    def __init__(self, left: int = 5, right: int = 7) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.left, self.right = nn.Conv2d(6, left, 1), nn.Conv2d(6, right, 3, padding=1)
        self.mix, self.head = nn.Conv2d(left + right, 6, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.mix(torch.cat((self.left(x).relu(), self.right(x).relu()), 1))
        return self.head(x.mean((2, 3)))


class Groups(nn.Module):
    """A branch with a convolution of `groups` groups, each of `fan_in` to `fan_out` channels."""

    def __init__(self, groups: int = 4, fan_in: int = 3, fan_out: int = 2) -> None:
        super().__init__()
        wide, narrow = groups * fan_in, groups * fan_out
        self.stem, self.up, self.norm = (
            nn.Conv2d(3, 6, 3, padding=1),
            nn.Conv2d(6, wide, 1),
            nn.BatchNorm2d(wide),
        )
        self.grouped = nn.Conv2d(wide, narrow, 3, padding=1, groups=groups)
        self.down, self.head = nn.Conv2d(narrow, 6, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(self.grouped(self.norm(self.up(x)).relu()).relu())
        return self.head(x.mean((2, 3)))
