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

from dyncompile.analysis.dims.algebra import Dim, Elastic, Factor, Sum, elastics, kept, size
from dyncompile.program import Decision
from dyncompile.runtime.synthesis import synthesize
from dyncompile.runtime.takers import find_takers, gains_of, is_neutral, table_of

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


def positions(like: Tensor, pattern: Pattern, *keeps: int | Tensor) -> Tensor:
    """The kept positions of a composite dim whose operands keep so many leading ones, or the given ones.

    Int64 [n], ascending, on the device of `like`.
    """
    sizes = tuple(keep for keep in keeps if isinstance(keep, int))
    if len(sizes) == len(keeps):
        return _positions(pattern, sizes, like.device)
    if len(pattern) == len(keeps) == 1 and pattern[0][0] == "x":
        return torch.as_tensor(keeps[0]).to(like.device)
    return kept(decode(pattern), {str(i): keep for i, keep in enumerate(keeps)}).to(like.device)


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


def active(decision: Decision, name: str, size: int, block: int, pays: float = 0.0) -> Tensor:
    """Positions of elastic dim `name` (of `size`) that any row keeps: int64 [n], on the CPU.

    Column j stands for `block` positions. At least the first block stays: kernels refuse empty tensors, and
    where its gains are 0 it adds nothing. All positions stay where rows x dropped / kept is below `pays`:
    gains of 0 remove them as well.
    """
    on = (decision.rows.detach() > 0).any(0).cpu()
    if bool(on.all()) or not len(decision.rows):
        return torch.arange(size)
    columns = on.nonzero().flatten() if bool(on.any()) else torch.zeros(1, dtype=torch.int64)
    index = columns
    if block > 1:
        index = (columns[:, None] * block + torch.arange(block)).flatten()
        index = index[index < size]
    dropped = size - len(index)
    return index if len(decision.rows) * dropped >= pays * len(index) else torch.arange(size)


def count(index: Tensor) -> int:
    """How many positions are kept."""
    return len(index)


def gains(decision: Decision, pattern: Pattern, block: int) -> Tensor:
    """The gain of every position of a composite dim, float [rows, positions].

    The pattern's only operand is the elastic dim that the decision is about; what lies beside it in a
    concatenation has gain 1.
    """
    columns = _columns(pattern, block, decision.rows.device)
    padded = torch.cat([decision.rows, decision.rows.new_ones(len(decision.rows), 1)], 1)
    return padded.index_select(1, columns)


@lru_cache(maxsize=4096)
def _columns(pattern: Pattern, block: int, device: torch.device) -> Tensor:
    """Column of the decision for every position of a dim; one past the last where none decides: int64."""
    dim = decode(pattern)
    (operand,) = elastics(dim)
    with torch.inference_mode(False):
        found = torch.full((size(dim),), -(-operand.size // block))
        beside = set[int](kept(dim, {operand.name: torch.arange(0)}).tolist())  # pyright: ignore
        for position in range(operand.size):
            index = kept(dim, {operand.name: torch.tensor([position])})
            mine = [i for i in index.tolist() if i not in beside]  # pyright: ignore
            found[mine] = position // block
        return found.to(device)


def gain(output: Tensor, decision: Decision, weights: tuple[float, ...], batch: int) -> Tensor:
    """What a branch adds, times the gain of each row: ``rows @ weights``; `batch` is the axis of the rows.

    Where all gains are 1 it is `output` itself. Execution that skips does not run what only rows of gain 0
    would need.
    """
    if find_takers(decision, table_of(decision), weights).all_neutral:
        return output
    return times(output, gains_of(decision, weights), batch)


def mix(
    outputs: Sequence[Tensor], decision: Decision, weights: tuple[tuple[float, ...], ...], batch: int
) -> Tensor:
    """Alternatives of one shape, each times its weight per row: ``sum_k (rows @ weights[k]) * outputs[k]``.

    `batch` is the axis of the rows. Where one alternative alone has weight 1 in all rows it is that output.
    A row whose weights are all 0 is 0. Execution that skips runs every alternative for the rows that give it
    a weight; here all have run, and an alternative that no row takes is left out (0 * inf is nan).
    """
    shares = [gains_of(decision, own) for own in weights]
    if len(outputs) == 1:
        return times(outputs[0], shares[0], batch)
    taken = [(x, one) for x, one in zip(outputs, shares, strict=True) if _matters(one)] or [
        (outputs[0], shares[0])
    ]
    if len(taken) == 1 and is_neutral(taken[0][1]):
        return taken[0][0].clone()  # what follows may write into it, and it may be something else's memory
    first, *others = (x * _per_row(one[:, None], x, batch, batch) for x, one in taken)
    return sum(others, first)


def _matters(gains: Tensor) -> bool:
    return (torch.is_grad_enabled() and gains.requires_grad) or bool((gains != 0).any())


def times(x: Tensor, gains: Tensor, batch: int) -> Tensor:
    """`x` with each row times its gain [rows]."""
    if is_neutral(gains):
        return x
    return x * _per_row(gains[:, None], x, batch, batch)


def scale(x: Tensor, gains: Tensor, axis: int, batch: int) -> Tensor:
    """`x` with the positions of `axis` times their gains [rows, positions]; `batch` is the axis of the rows.

    A gain of 0 removes a position where nothing but a contraction reads it afterwards.
    """
    return x if is_neutral(gains) else x * _per_row(gains, x, axis, batch)


def _per_row(gains: Tensor, x: Tensor, axis: int, batch: int) -> Tensor:
    """Gains [rows, n] in a shape that multiplies `x`; several positions of `batch` may belong to one row."""
    per_row = x.shape[batch] // max(len(gains), 1)
    spread = (gains.repeat_interleave(per_row, 0) if per_row > 1 else gains).to(x.device, x.dtype)
    shape = [1] * x.dim()
    shape[batch] = len(spread)
    if axis != batch:
        shape[axis] = spread.shape[1]
    return (spread if batch <= axis else spread.T).reshape(shape)


def leave(final: Tensor, early: Tensor, decision: Decision) -> Tensor:
    """The prediction [B, ...] of each row: `early` where it stops (1), else `final`.

    Execution that skips does not run what only `final` would need for rows that stop.
    """
    stop = decision.rows.detach()[:, 0].to(final.device) > 0
    if not bool(stop.any()):
        return final
    return torch.where(stop.view(-1, *[1] * (final.dim() - 1)), early.to(final.dtype), final)


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """`image` [B, C, H, W] at another (height, width): bilinear, with a low-pass before sampling down."""
    return RESIZE(image, list(size), False)


RESIZE = torch.ops.aten._upsample_bilinear2d_aa.default
"""The operator by which inputs change their size: ``(image, [height, width], align_corners)``."""

FOLDABLE = (decide, extent, prefix, positions, take, pick, active, count, gains, synthesize)
"""What decisions and parameters alone determine."""

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
