"""The algebra of dimensions: what a tensor dimension is made of.

A `Dim` is a row-major product of factors. A factor is

* an ``int``: a fixed extent,
* a `Rigid`: a symbolic extent that never changes (the batch),
* an `Atom`: an extent that may shrink, still a variable of the unification,
* an `Elastic`: an atom after the inference, with a stable name,
* a `Sum`: a concatenation of dims.

The empty product has size 1, so broadcasting needs no special case. Example: the rows of a fused ``qkv``
weight have the type ``(3, heads, head_dim)``; a DenseNet layer reads ``(Sum(stem, growth, growth),)``. All
functions here are pure; the mutable part, unification, lives in `environment`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import torch

BATCH_STAND_IN = 1_000_003
"""A prime that stands for the batch in sizes: no other dimension can be aligned with it by accident."""


@dataclass(frozen=True, slots=True)
class Rigid:
    """A symbolic extent that is neither sliced nor frozen; `size` is a large prime stand-in."""

    name: str
    size: int

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, eq=False)
class Atom:
    """A unification variable: an extent of `size` positions that may move as one (identity is equality)."""

    size: int
    serial: int

    def __repr__(self) -> str:
        return f"a{self.serial}:{self.size}"


@dataclass(frozen=True, slots=True)
class Elastic:
    """An extent that was inferred to be free: it may shrink to any prefix, everywhere at once."""

    name: str
    size: int

    def __repr__(self) -> str:
        return f"{self.name}:{self.size}"


@dataclass(frozen=True, slots=True)
class Sum:
    """A concatenation of dims, in order."""

    segments: tuple[Dim, ...]

    @property
    def size(self) -> int:
        """Positions of all segments together."""
        return sum(size(segment) for segment in self.segments)

    def __repr__(self) -> str:
        return "(" + " + ".join(map(render, self.segments)) + ")"


Factor = int | Rigid | Atom | Elastic | Sum
Dim = tuple[Factor, ...]
Widths = Mapping[str, int]
"""Active sizes of elastic dims by name; a name that is absent is at full size."""
Positions = Mapping[str, int | torch.Tensor]
"""What is kept of elastic dims by name: so many leading positions, or the given ones, int64 [n]."""

BATCH = Rigid("B", BATCH_STAND_IN)


class Misaligned(Exception):
    """Two factorizations have no common refinement."""


def factor_size(factor: Factor) -> int:
    """Positions of one factor."""
    return factor if isinstance(factor, int) else factor.size


def size(dim: Dim) -> int:
    """Positions of a dim: the product over its factors."""
    return prod(factor_size(factor) for factor in dim)


def fixed(n: int) -> Dim:
    """The dim of a size that cannot move; multiples of the batch stand-in keep the batch symbolic."""
    if n and n % BATCH_STAND_IN == 0:
        return (BATCH, *fixed(n // BATCH_STAND_IN))
    return () if n == 1 else (n,)


def render(dim: Dim) -> str:
    """`dim` as text, e.g. ``(3, heads:12, 64)``."""
    return repr(dim[0]) if len(dim) == 1 else "(" + ", ".join(map(repr, dim)) + ")"


def leaves(dim: Dim) -> Iterator[Factor]:
    """Every int, rigid, atom or elastic factor of a dim, sums opened, in order."""
    for factor in dim:
        if isinstance(factor, Sum):
            for segment in factor.segments:
                yield from leaves(segment)
        else:
            yield factor


def elastics(dim: Dim) -> list[Elastic]:
    """The elastic factors of a resolved dim in order of appearance, each once."""
    return list(dict.fromkeys(factor for factor in leaves(dim) if isinstance(factor, Elastic)))


def unit(dim: Dim, name: str) -> int:
    """Positions of a dim per position of the named factor: the size of what lies inside it; 1 without it."""
    for i, factor in enumerate(dim):
        inner = size(dim[i + 1 :])
        if isinstance(factor, Elastic) and factor.name == name:
            return inner
        if isinstance(factor, Sum):
            for segment in factor.segments:
                if any(one.name == name for one in elastics(segment)):
                    return inner * unit(segment, name)
    return 1


def is_batched(dim: Dim) -> bool:
    """Whether the batch is a factor of `dim`."""
    return any(factor == BATCH for factor in leaves(dim) if isinstance(factor, Rigid))


def resized(dim: Dim, widths: Mapping[str, object]) -> bool:
    """Whether any factor of `dim` is named in `widths`."""
    return any(elastic.name in widths for elastic in elastics(dim))


def active(dim: Dim, widths: Widths, batch: int = BATCH_STAND_IN) -> int:
    """Size of a resolved dim at the given widths and batch."""
    total = 1
    for factor in dim:
        if isinstance(factor, Elastic):
            total *= widths.get(factor.name, factor.size)
        elif isinstance(factor, Sum):
            total *= sum(active(segment, widths, batch) for segment in factor.segments)
        else:
            total *= batch if factor == BATCH else factor_size(factor)
    return total


def kept(dim: Dim, widths: Positions) -> torch.Tensor:
    """Flat positions of a resolved dim that stay when its elastic factors keep what `widths` says.

    Int64, shape [active(dim)], ascending where the given positions are.
    """
    index = torch.zeros(1, dtype=torch.int64)
    for factor in dim:
        inner = _kept_factor(factor, widths)
        index = (index[:, None] * factor_size(factor) + inner[None]).reshape(-1)
    return index


def _kept_factor(factor: Factor, widths: Positions) -> torch.Tensor:
    if isinstance(factor, Elastic):
        given = widths.get(factor.name, factor.size)
        return given if isinstance(given, torch.Tensor) else torch.arange(given)
    if not isinstance(factor, Sum):
        return torch.arange(factor_size(factor))
    parts: list[torch.Tensor] = []
    offset = 0
    for segment in factor.segments:
        parts.append(kept(segment, widths) + offset)
        offset += size(segment)
    return torch.cat(parts)


def is_prefix(dim: Dim, widths: Mapping[str, object]) -> bool:
    """Whether the kept positions are a prefix at all values of the named widths: a view can hold them."""
    for position, factor in enumerate(dim):
        if not resized((factor,), widths):
            continue
        if any(factor_size(outer) != 1 for outer in dim[:position]) or resized(dim[position + 1 :], widths):
            return False
        return not isinstance(factor, Sum) or _is_prefix_sum(factor, widths)
    return True


def _is_prefix_sum(factor: Sum, widths: Mapping[str, object]) -> bool:
    *head, last = factor.segments
    return not any(resized(segment, widths) for segment in head) and is_prefix(last, widths)
