"""Candidates: what may stand in for a part of a network, built from the shapes that it takes and gives.

A candidate is a name and a function from a `Place` to a module, or to the reason why there is none. Users add
their own with `register_candidate`; a spec then names them like those that are built in.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from dyncompile.errors import SpecError


@dataclass(frozen=True)
class Layers:
    """Layers for maps with one number of spatial axes."""

    convolution: type[nn.Conv1d | nn.Conv2d | nn.Conv3d]
    norm: type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]
    pool: type[nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d | nn.AdaptiveAvgPool3d]


_LAYERS: dict[int, Layers] = {
    1: Layers(nn.Conv1d, nn.BatchNorm1d, nn.AdaptiveAvgPool1d),
    2: Layers(nn.Conv2d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d),
    3: Layers(nn.Conv3d, nn.BatchNorm3d, nn.AdaptiveAvgPool3d),
}


@dataclass(frozen=True)
class Place:
    """What a candidate is built for: a connection, seen from outside.

    Attributes:
        name: of the connection.
        takes, gives: shapes per sample, in front of the connection and behind it.
        last: whether channels are the last axis (tokens, vectors, maps [B, H, W, C]), instead of the first.
        residual: whether what it gives is added to something that is kept.
        normed: whether it ends in a batch norm.
        activation: makes the activation that it ends in; None without one.
        rank: channels between the two maps of a low-rank candidate.
        narrow: makes a copy of the connection itself with all its inner dims narrowed, or says why not.
    """

    name: str
    takes: tuple[int, ...]
    gives: tuple[int, ...]
    last: bool
    residual: bool = False
    normed: bool = False
    activation: Callable[[], nn.Module] | None = None
    rank: int = 1
    narrow: Callable[[], nn.Module | str] = field(default=lambda: "it has no graph", compare=False)

    @property
    def channels(self) -> tuple[int, int]:
        """Channels in front and behind."""
        axis = -1 if self.last else 0
        return self.takes[axis], self.gives[axis]

    @property
    def positions(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Sizes of the other axes in front and behind."""
        if self.last:
            return self.takes[:-1], self.gives[:-1]
        return self.takes[1:], self.gives[1:]

    @property
    def is_map(self) -> bool:
        """Whether it is about maps [B, C, L], [B, C, H, W] or [B, C, D, H, W]."""
        return not self.last and len(self.takes) == len(self.gives) and len(self.takes) - 1 in _LAYERS

    @property
    def layers(self) -> Layers:
        """The layers of its maps. Raises LookupError where it has none."""
        return _LAYERS[len(self.takes) - 1]

    def end(self) -> list[nn.Module]:
        """What a candidate ends in, as the connection does: batch norm, activation."""
        norm: list[nn.Module] = []
        if self.normed and self.is_map:
            norm.append(self.layers.norm(self.channels[1]))
        return norm + ([] if self.activation is None else [self.activation()])


class Candidate(Protocol):
    """Builds what may stand in for a connection."""

    def __call__(self, place: Place) -> nn.Module | str:
        """A module from [B, *takes] to [B, *gives], or why this one does not fit here."""
        ...


class Activation(nn.Module):
    """The elementwise function that a node of a graph computes."""

    def __init__(self, node: fx.Node) -> None:
        super().__init__()
        name = str(node.target).removeprefix("aten.").split(".")
        self.function = getattr(getattr(torch.ops.aten, name[0].rstrip("_")), name[1])
        self.arguments = (*node.args[1:], dict(node.kwargs))

    def forward(self, x: Tensor) -> Tensor:
        """Element by element."""
        *args, kwargs = self.arguments
        return self.function(x, *args, **kwargs)


class Nothing(nn.Module):
    """Beside what a residual connection keeps: nothing. It is never inserted; a row of weight 1 skips."""

    def forward(self, x: Tensor) -> Tensor:
        """Zeros."""
        return x.new_zeros(x.shape)


class Separable(nn.Module):
    """A depthwise convolution, then a pointwise one: [B, C, *S] -> [B, C', *S']."""

    def __init__(self, place: Place, kernel: int, stride: tuple[int, ...]) -> None:
        super().__init__()
        taken, given = place.channels
        layer: Any = place.layers.convolution
        self.depthwise = layer(taken, taken, kernel, stride, kernel // 2, groups=taken, bias=False)
        self.pointwise = layer(taken, given, 1, bias=not place.normed)
        self.end = nn.Sequential(*place.end())

    def forward(self, x: Tensor) -> Tensor:
        """Mix positions, then channels."""
        return self.end(self.pointwise(self.depthwise(x)))


class Pointwise(nn.Module):
    """Linear maps of channels, position by position, after pooling where there are fewer positions behind."""

    def __init__(self, place: Place, widths: tuple[int, ...]) -> None:
        super().__init__()
        before, after = place.positions
        pool: Any = place.layers.pool if before != after else nn.Identity
        self.pool = pool(after)
        layers: list[nn.Module] = []
        for i, (taken, given) in enumerate(pairwise(widths)):
            bias = i == len(widths) - 2 and not (place.normed and place.is_map)
            layers.append(
                place.layers.convolution(taken, given, 1, bias=bias)
                if place.is_map
                else nn.Linear(taken, given, bias)
            )
        self.layers = nn.Sequential(*layers)
        self.end = nn.Sequential(*place.end())

    def forward(self, x: Tensor) -> Tensor:
        """Pool, then map."""
        return self.end(self.layers(self.pool(x)))


def identity(place: Place) -> nn.Module | str:
    """What came in; nothing beside what is kept; pooling and a pointwise map where shapes differ."""
    if place.residual:
        return Nothing()
    if place.takes == place.gives:
        return nn.Identity()
    return _pointwise(place, place.channels)


def low_rank(place: Place) -> nn.Module | str:
    """Two pointwise maps with `place.rank` channels between them."""
    taken, given = place.channels
    return _pointwise(place, (taken, min(place.rank, taken, given), given))


def narrow(place: Place) -> nn.Module | str:
    """The connection itself, narrower inside; it starts from the weights that it keeps."""
    return place.narrow()


def separable3(place: Place) -> nn.Module | str:
    """A separable convolution of 3x3."""
    return _separable(place, 3)


def separable5(place: Place) -> nn.Module | str:
    """A separable convolution of 5x5."""
    return _separable(place, 5)


def _pointwise(place: Place, widths: tuple[int, ...]) -> nn.Module | str:
    if not (place.last or place.is_map):
        return f"there are no layers for maps with {len(place.takes) - 1} and {len(place.gives) - 1} axes"
    before, after = place.positions
    if before != after and (not place.is_map or any(b < a for b, a in zip(before, after, strict=True))):
        return f"positions change from {list(before)} to {list(after)}"
    return Pointwise(place, widths)


def _separable(place: Place, kernel: int) -> nn.Module | str:
    if not place.is_map:
        return "there is no map [B, C, *positions]"
    before, after = place.positions
    strides = [
        next((s for s in range(1, b + 1) if -(-b // s) == a), 0)
        for b, a in zip(*place.positions, strict=True)
    ]
    if not all(strides):
        return f"no stride leads from {list(before)} to {list(after)} positions"
    return Separable(place, kernel, tuple(strides))


_CANDIDATES: dict[str, Candidate] = {
    "identity": identity,
    "separable3": separable3,
    "separable5": separable5,
    "narrow": narrow,
    "lowrank": low_rank,
}


def register_candidate(name: str, candidate: Candidate) -> None:
    """Let specs name a candidate: ``routing(candidates=("identity", "mine"))``.

    A checkpoint names it, too: register it before loading. Raises SpecError for a name that is taken (also
    by a member of modules, since it becomes part of the names of parameters).
    """
    taken = _CANDIDATES.get(name, candidate) is not candidate
    if taken or not name.isidentifier() or hasattr(nn.Module, name) or name == "original":
        raise SpecError(f"a candidate needs a free identifier as its name, not {name!r}")
    _CANDIDATES[name] = candidate


def find_candidate(name: str) -> Candidate:
    """The candidate of a name. Raises SpecError with the nearest one."""
    if name in _CANDIDATES:
        return _CANDIDATES[name]
    close = difflib.get_close_matches(name, list(_CANDIDATES), 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise SpecError(
        f"there is no candidate {name!r}{hint}",
        fix=f"candidates are: {', '.join(_CANDIDATES)}; `register_candidate` adds others",
    )
