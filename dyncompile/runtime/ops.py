"""The operators that passes put into a graph. They are plain functions; all state is in their arguments.

Those in `FOLDABLE` depend on the decision and on parameters alone, never on activations: once the route is
known they are evaluated ahead of time (`dyncompile.deploy.specialize`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from dyncompile.analysis.dims.algebra import Dim, Elastic, Factor, Sum, kept
from dyncompile.program import Decision

Pattern = tuple[Any, ...]
"""A dim as nested literals.

Ints, ``("x", operand, size)`` for a size operand, ``("+", *patterns)`` for a sum.
"""


class Steering(Protocol):
    """What stands behind the graph's `policy` input while it runs."""

    @property
    def rows(self) -> Tensor:
        """Positions in the batch of the rows that run: int64 [n]."""
        ...

    def decide(self, name: str, features: Sequence[Tensor]) -> Decision:
        """The decision of one choice for the rows that run."""
        ...


def decide(policy: Steering, name: str, *features: Tensor) -> Decision:
    """The decision of choice `name`, taken by the policy that steers this run."""
    return policy.decide(name, features)


def row_count(policy: Steering) -> int:
    """How many rows run."""
    return len(policy.rows)


def extent(decision: Decision, sizes: tuple[int, ...]) -> int:
    """The size that a one-hot decision picks; all rows of a run share it."""
    return sizes[decision.index]


def prefix(tensor: Tensor, sizes: tuple[int | None, ...]) -> Tensor:
    """The leading ``sizes[i]`` positions of each axis as a *view*: gradients and statistics write through."""
    for axis, n in enumerate(sizes):
        if n is not None and n != tensor.shape[axis]:
            tensor = tensor.narrow(axis, 0, n)
    return tensor


def positions(like: Tensor, pattern: Pattern, *sizes: int) -> Tensor:
    """The kept positions of a composite dim at the given sizes.

    Int64 [n], ascending, on the device of `like`.
    """
    return _positions(pattern, sizes, like.device)


@lru_cache(maxsize=4096)
def _positions(pattern: Pattern, sizes: tuple[int, ...], device: torch.device) -> Tensor:
    widths = {str(i): n for i, n in enumerate(sizes)}
    with torch.inference_mode(False):
        return kept(decode(pattern), widths).to(device)


def take(tensor: Tensor, axis: int, index: Tensor) -> Tensor:
    """The given positions of one axis (a copy; the tensor itself where all are kept)."""
    return tensor if len(index) == tensor.shape[axis] else tensor.index_select(axis, index)


def pick(decision: Decision, options: Sequence[Tensor]) -> Tensor:
    """The option that a one-hot decision names: private statistics per width."""
    return options[decision.index]


def put(buffer: Tensor, index: Tensor, value: Tensor) -> None:
    """Write statistics that were updated on a copy made by `take` back to where they came from."""
    if value is not buffer:
        with torch.no_grad():
            buffer.index_copy_(0, index, value)


FOLDABLE = (decide, extent, prefix, positions, take, pick)
DECISIONS = (decide,)
"""Operators whose inputs are features of a decision, not data of the network."""


def encode(dim: Dim, order: Sequence[str]) -> Pattern:
    """`dim` as a pattern whose size operands are the elastic names in `order`; others stay at full size."""
    return tuple(_encode_factor(factor, order) for factor in dim)


def _encode_factor(factor: Factor, order: Sequence[str]) -> Any:
    if isinstance(factor, Sum):
        return ("+", *(encode(segment, order) for segment in factor.segments))
    if isinstance(factor, Elastic) and factor.name in order:
        return ("x", order.index(factor.name), factor.size)
    return factor if isinstance(factor, int) else factor.size


def decode(pattern: Pattern) -> Dim:
    """The dim of a pattern; operands become elastic factors that are named by their position."""
    return tuple(_decode_factor(part) for part in pattern)


def _decode_factor(part: Any) -> Factor:
    if isinstance(part, int):
        return part
    if part[0] == "+":
        return Sum(tuple(decode(segment) for segment in part[1:]))
    return Elastic(str(part[1]), part[2])
