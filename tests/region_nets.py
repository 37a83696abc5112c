"""Small networks with residual branches and without, and how the tests of `analysis.regions` export them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F


def exported(
    module: nn.Module, args: Iterable[Any], kwargs: dict[str, Any], training: bool, dynamic: bool = True
) -> fx.GraphModule:
    args = tuple(args)
    named = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    shapes = {
        name: {0: torch.export.Dim.DYNAMIC} if isinstance(x, Tensor) else None for name, x in named.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dynamic_shapes = shapes if dynamic else None
        program = torch.export.export(
            module.train(training), args, kwargs, dynamic_shapes=dynamic_shapes, strict=False
        )
        return program.module()  # pyright: ignore[reportReturnType]


Run = Callable[[Any, Tensor], Any]


class Made(nn.Module):
    """A network from a function of itself and its input."""

    def __init__(self, run: Run, **parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)
        self.scale = nn.Parameter(torch.full((1,), 0.5))
        self.register_buffer("runs", torch.zeros(1))

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def conv(width: int = 4, out: int = 4, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(width, out, kernel, stride, kernel // 2, groups=groups)
    return nn.Sequential(convolution, nn.BatchNorm2d(out))


def block(width: int = 4, out: int = 4, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(conv(width, out, 3, stride), nn.ReLU(inplace=True), conv(out, out))


def drop_path(net: nn.Module, value: Tensor) -> Tensor:
    if not net.training:
        return value
    return value * value.new_empty(value.shape[0], 1, 1, 1).bernoulli_(0.8).div_(0.8)


def gate(net: Any, value: Tensor) -> Tensor:
    return value * torch.sigmoid(net.gate(value.mean((2, 3), keepdim=True)))


def shifted(net: Any, x: Tensor) -> Tensor:
    """Window attention in short: roll, views with the batch inside, and a bias written into a slice."""
    tokens = torch.roll(x, (1, 1), (2, 3)).view(-1, 4, 2, 32).permute(0, 2, 3, 1).reshape(-1, 32, 4)
    scores = net.query(tokens) @ net.key(tokens).transpose(-2, -1)
    scores[:, 1:] = scores[:, 1:] + net.bias(tokens).mean(-1, keepdim=True)[:, 1:]
    out = (scores.softmax(-1) @ net.value(tokens)).reshape(-1, 2, 32, 4).permute(0, 3, 1, 2).reshape(x.shape)
    return torch.roll(out, (-1, -1), (2, 3))


def written(net: Any, x: Tensor) -> Tensor:
    """Data that enters a constant through its memory only."""
    out = torch.zeros_like(x)
    out[:, :2] = net.a(x)[:, :2]
    return x + out


def noisy(net: Any, x: Tensor) -> Tensor:
    """Noise in the shape of the input does not depend on it."""
    return x + net.a(torch.randn_like(x))


def logits(net: Any, x: Tensor) -> Tensor:
    query, key = net.both(x.flatten(2).transpose(1, 2)).chunk(2, -1)
    return query @ key.transpose(-2, -1) + net.position(query)


def attention_without_parameters(net: Any, x: Tensor) -> Tensor:
    values = net.a(x)
    return values + (values @ values.transpose(-2, -1)).softmax(-1) @ values


def linears(*names: str) -> dict[str, nn.Module]:
    return {name: nn.Linear(4, 4) for name in names}


def twice(net: Any, x: Tensor) -> Tensor:
    x = x + net.a(x)
    return x + net.a(x)


def parallel(net: Any, x: Tensor) -> Tensor:
    normed = net.norm(x)
    return x + net.a(normed) + net.b(normed)


def parallel_summed(net: Any, x: Tensor) -> Tensor:
    normed = net.norm(x)
    return x + (net.a(normed) + net.b(normed))


def preact_projection(net: Any, x: Tensor) -> Tensor:
    normed = F.relu(net.norm(x))
    return net.short(normed) + net.a(normed)


def shrunk(net: Any, x: Tensor) -> Tensor:
    inner = net.a(x)
    return torch.cat([x + net.b(inner), inner], 1)


def two_streams(net: Any, x: Tensor) -> Tensor:
    a, b = net.a(x), net.b(x)
    return torch.cat([a + net.c(b), b + net.d(a)], 1)


ACCEPTED: dict[str, tuple[Run, dict[str, nn.Module], list[str]]] = {
    # name: forward, parts, names of the branches; "+" marks those with a shortcut
    "basic": (lambda m, x: F.relu(x + m.a(x)), {"a": block()}, ["a"]),
    "in place": (lambda m, x: m.a(x).add_(x).relu_(), {"a": block()}, ["a"]),
    "pre-activation in place": (
        lambda m, x: x + m.a(F.relu(m.norm(x), True)),
        {"a": block(), "norm": nn.BatchNorm2d(4)},
        ["a"],
    ),
    "downsample": (lambda m, x: m.a(x) + m.s(x), {"a": block(4, 8, 2), "s": conv(4, 8, 1, 2)}, ["a+"]),
    "pool": (lambda m, x: F.max_pool2d(x, 2) + m.a(x), {"a": block(4, 4, 2)}, ["a+"]),
    "separable shortcut": (
        lambda m, x: m.a(x) + m.s(x),
        {"a": nn.Sequential(block(), conv()), "s": nn.Sequential(conv(groups=4), conv(kernel=1))},
        ["a+"],
    ),
    "shared pre-activation": (
        preact_projection,
        {"norm": nn.BatchNorm2d(4), "a": block(), "short": conv(kernel=1)},
        ["a+"],
    ),
    "scaled stream": (lambda m, x: 0.7 * x + m.a(x), {"a": block()}, ["a+"]),
    "layer scale and drop path": (lambda m, x: x + drop_path(m, m.a(x) * m.scale), {"a": block()}, ["a"]),
    "dropout": (lambda m, x: x + F.dropout(m.a(x), 0.5, m.training), {"a": block()}, ["a"]),
    "squeeze and excitation": (
        lambda m, x: x + gate(m, m.a(x)),
        {"a": block(), "gate": conv(kernel=1)},
        ["model"],
    ),
    "post-norm": (lambda m, x: m.norm(x + m.a(x)), {"a": block(), "norm": nn.GroupNorm(2, 4)}, ["a"]),
    "windows": (lambda m, x: x + shifted(m, x), linears("query", "key", "value", "bias"), ["model"]),
    "written": (written, {"a": block()}, ["a"]),
    "shared module": (twice, {"a": block()}, ["a", "a#2"]),
    "nested": (lambda m, x: x + ((b := m.b(x)) + m.c(b)), {"b": conv(), "c": block()}, ["c", "model"]),
    "parallel": (parallel, {"norm": nn.GroupNorm(2, 4), "a": block(), "b": block()}, ["a", "b"]),
    "parallel, summed": (
        parallel_summed,
        {"norm": nn.GroupNorm(2, 4), "a": block(), "b": block()},
        ["model"],
    ),
    "shrunk": (shrunk, {"a": conv(), "b": conv()}, ["b.0"]),
    "position": (lambda m, x: m.norm(x) + m.scale, {"norm": conv()}, []),
    "rotary": (lambda m, x: (q := m.a(x)) * 0.6 + q.flip(1) * 0.8, {"a": conv()}, []),
    "noise": (noisy, {"a": block()}, []),
    "attention without parameters": (attention_without_parameters, {"a": conv()}, []),
    "gelu": (lambda m, x: (q := m.a(x)) * (1 + torch.tanh(q + 0.04 * q**3)), {"a": conv()}, []),
}
REFUSED: dict[str, tuple[Run, dict[str, nn.Module], str]] = {
    "output used": (
        lambda m, x: torch.cat([x + (b := m.a(x)), b], 1),
        {"a": nn.Conv2d(4, 4, 1)},
        "what it adds is needed elsewhere: `conv2d` is also used by `cat`",
    ),
    "contraction shared": (
        lambda m, x: torch.cat([x + (b := m.a(x))[:, :4], b[:, 4:]], 1),
        {"a": nn.Conv2d(4, 8, 1)},
        "no contraction runs for this branch alone: `conv2d` is also used by",
    ),
    "two streams": (
        two_streams,
        {name: conv() for name in "abcd"},
        "`batch_norm` is also used by `conv2d_3`, and `batch_norm_2` does not start from it",
    ),
    "different entries": (
        lambda m, x: torch.cat([m.c(a := m.a(x)) + m.d(m.e(b := m.b(x))), a, b], 1),
        {name: conv() for name in "abcde"},
        "its sides start from different values: `batch_norm` and `batch_norm_",
    ),
    "attention logits": (
        logits,
        {"both": nn.Linear(4, 8), "position": nn.Linear(4, 64)},
        "its sides start from different values: `chunk`, `getitem` and `getitem`",
    ),
    "parallel main paths": (
        lambda m, x: m.a(x) + m.b(x),
        {"a": block(), "b": block()},
        "its sides are parallel main paths of 2 and 2 contractions",
    ),
    "equal sides": (lambda m, x: m.a(x) + m.b(x), {"a": conv(), "b": conv()}, "equally many contractions"),
    "shape": (
        lambda m, x: (p := x.mean((2, 3), keepdim=True)) + m.a(p.expand(-1, -1, 8, 8)),
        {"a": block()},
        r"`mean`, which would remain, is float32\[.*, 4, 1, 1\], but the sum is float32\[.*, 4, 8, 8\]",
    ),
    "dtype": (lambda m, x: x + m.a(x).double(), {"a": block()}, "is float32.*, but the sum is float64"),
    "alpha": (lambda m, x: torch.add(m.a(x), x, alpha=2), {"a": block()}, "enters scaled by 2"),
}


def made(run: Run, parts: dict[str, nn.Module], training: bool) -> fx.GraphModule:
    return exported(Made(run, **parts), (torch.randn(2, 4, 8, 8),), {}, training)


class Residual(nn.Module):
    """Two blocks on a stem; `kept` says which of the blocks run."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = conv(), nn.ModuleList([block(4, 8, 2), block(8, 8)])
        self.short, self.head, self.kept = conv(4, 8, 1, 2), nn.Linear(8, 3), (True, True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.short(x) + self.blocks[0](x) if self.kept[0] else self.short(x)
        x = F.relu(x + self.blocks[1](x) if self.kept[1] else x)
        return self.head(x.mean((2, 3)))


class MaskedMean(nn.Module):
    """Tokens -> a residual MLP -> the mean over those that a mask keeps -> classes: a sentence encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.stem, self.head = nn.Embedding(10, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        x = self.stem(self.embedding(words))
        x = x + self.down(F.relu(self.up(x)))
        kept = mask[..., None].to(x.dtype)
        return self.head((x * kept).sum(1) / kept.sum(1).clamp(min=1e-9))


class CrossAttention(nn.Module):
    """A masked encoder layer and a decoder layer that reads its result; one token mask per input."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        self.decoder = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
        self.again = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)

    def forward(self, source: Tensor, mask: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.encoder(source, src_key_padding_mask=mask)
        return self.again(self.decoder(target, memory), memory), memory
