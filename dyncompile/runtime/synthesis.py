"""Layers whose weight is put together for each sample from bases (BasisNet, CondConv, dynamic convolution).

    W(x) = W0 + sum_n a_n(x) D_n            W0 [*W], D [N, *W], a [B, N];  y = conv(x, W(x)) + b

With D = 0 this is W0 for any finite a. Rows whose coefficients are equal share one kernel, and all zeros
mean W0 itself: then the layer runs as the source's does, bit for bit. Other rows need kernels of their own.
What is fastest was measured (float32, one CPU thread, batches 1, 8, 32; ``benchmarks/synthesis.py``):

    one row                  the layer with the synthesized kernel; what that costs besides the layer, checks
                             and views included, is 20 microseconds, a fourth of a small depthwise layer
    kernels of many rows     a product, then W0 added in place: up to 4 times as fast as one fused call
    1x1 convolution, linear  batched matrix product: 1.0 to 2.1 times as fast as a grouped convolution
    other convolutions       one convolution with B times the groups; a loop takes up to 5 times as long
    many large kernels       in chunks: kernels that stay in the cache make a 3x3 layer of 256 channels at 7x7
                             twice as fast as one convolution of 32 rows' groups, which holds 75 MB of kernels

A chunk holds at most `CPU_KERNELS` (or `DEVICE_KERNELS`) numbers of kernels, one row's kernel at least. With
gradients, chunks are computed again in the backward pass, so that the bound holds there, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import checkpoint

from dyncompile.program import Decision

CPU_KERNELS = 2**21
"""Numbers in all kernels that are held at once on a CPU: 8 MB in float32, about a core's share of cache."""
DEVICE_KERNELS = 2**26
"""The same elsewhere: 256 MB in float32."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """One kernel per row, not computed yet.

    Attributes:
        weight: W0.
        bases: D [N, *W0.shape].
        coefficients: a [B, N], in the dtype of the weight.
        rounded: whether coefficients are rounded, so that equal rows are to be expected.
    """

    weight: Tensor
    bases: Tensor
    coefficients: Tensor
    rounded: bool = False

    @property
    def shared(self) -> bool:
        """Whether one kernel serves all rows: their coefficients are equal and take no gradient."""
        rows = self.coefficients
        if rows.shape[0] < 2:
            return True
        if _learns(rows):
            return False
        first, second = _numbers(rows[:2])  # most batches part here
        return first == second and bool((rows == rows[:1]).all())

    def single(self, row: int = 0) -> Tensor:
        """The kernel of one row; W0 itself where its coefficients are 0, or where there is no row."""
        rows = self.coefficients
        if rows.shape[0] != 1:
            rows = rows[row : row + 1]
        if not rows.shape[0] or not (_learns(rows) or any(_numbers(rows)[0])):
            return self.weight
        flat = torch.addmm(self.weight.reshape(1, -1), rows, self.bases.flatten(1))
        return flat.view(self.weight.shape)


Own = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""``layer(x, kernel or kernels, bias)``."""


def synthesize(weight: Tensor, bases: Tensor, decision: Decision, start: int, step: float) -> Kernels:
    """Kernels whose coefficients are the columns of a decision from `start` on, one per basis.

    A `step` above 0 rounds them to its multiples (straight-through): rows that round alike share a kernel.
    """
    rows = decision.rows.narrow(1, start, bases.shape[0])
    if rows.dtype is not weight.dtype or rows.device != weight.device:
        rows = rows.to(weight.device, weight.dtype)
    if step:
        rounded = (rows.detach() / step).round() * step
        rows = rounded + (rows - rows.detach()) if _learns(rows) else rounded
    return Kernels(weight, bases, rows, bool(step))


def basis_conv2d(
    input: Tensor,
    weight: Kernels,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """``[B, C, H, W] -> [B, O, H', W']``: row i is convolved with kernel i."""
    if weight.shared:
        return F.conv2d(input, weight.single(), bias, stride, padding, dilation, groups)
    one = partial(_convolved, stride=stride, padding=padding, dilation=dilation, groups=groups)
    pointwise = groups == 1 and weight.weight.shape[2:] == (1, 1) and not any(_pair(padding))
    many = (
        partial(_multiplied, stride=stride)
        if pointwise
        else partial(_grouped, stride=stride, padding=padding, dilation=dilation, groups=groups)
    )
    return _mixed(input, weight, bias, one, many)


def basis_linear(input: Tensor, weight: Kernels, bias: Tensor | None) -> Tensor:
    """``[B k, ..., I] -> [B k, ..., O]``: the k positions of axis 0 that belong to row i meet kernel i."""
    if weight.shared:
        return F.linear(input, weight.single(), bias)
    return _mixed(input, weight, bias, F.linear, _linear)


def _mixed(x: Tensor, kernels: Kernels, bias: Tensor | None, one: Own, many: Own) -> Tensor:
    """Few kernels: the rows of each together; many: in chunks."""
    count = len(kernels.coefficients)
    if kernels.rounded and not _learns(kernels.coefficients):
        member = _groups(kernels.coefficients)
        if int(member.max()) < count // 2:
            return _by_kernel(x, kernels, bias, one, member)
    bound = CPU_KERNELS if x.device.type == "cpu" else DEVICE_KERNELS
    size = max(1, min(count, bound // kernels.weight.numel()))
    if size == count:
        return _chunk(x, kernels.weight, kernels.bases, kernels.coefficients, bias, many)
    per_row = x.shape[0] // count
    parts: list[Tensor] = []
    for at in range(0, count, size):
        some, rows = x[at * per_row : (at + size) * per_row], kernels.coefficients[at : at + size]
        parts.append(_again(_chunk, some, kernels.weight, kernels.bases, rows, bias, many))
    return torch.cat(parts)


def _by_kernel(x: Tensor, kernels: Kernels, bias: Tensor | None, one: Own, member: Tensor) -> Tensor:
    """Rows of one group each run together: `member` [B] says which."""
    groups = [(member == i).nonzero().flatten() for i in range(int(member.max()) + 1)]
    by_row = torch.unflatten(x, 0, (len(member), -1))
    parts = [one(by_row[at].flatten(0, 1), kernels.single(int(at[0])), bias) for at in groups]
    order = torch.cat(groups).argsort()
    whole = torch.unflatten(torch.cat(parts), 0, (len(member), -1))
    return whole.index_select(0, order).flatten(0, 1)


def _groups(rows: Tensor) -> Tensor:
    """Which of the distinct rows each row [B, N] is: int64 [B]."""
    return cast(Any, torch).unique(rows, dim=0, return_inverse=True)[1]


def _again(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """A call whose intermediate values are computed again for its gradient."""
    if not torch.is_grad_enabled():
        return function(*arguments)
    return cast(Any, checkpoint).checkpoint(function, *arguments, use_reentrant=False)


def _chunk(x: Tensor, weight: Tensor, bases: Tensor, rows: Tensor, bias: Tensor | None, many: Own) -> Tensor:
    return many(x, _synthesized(weight, bases, rows), bias)


def _synthesized(weight: Tensor, bases: Tensor, rows: Tensor) -> Tensor:
    """Kernels [n, *W] of coefficients [n, N]."""
    flat = torch.mm(rows, bases.flatten(1)).add_(weight.reshape(1, -1))
    return flat.view(len(rows), *weight.shape)


def _convolved(
    x: Tensor, kernel: Tensor, bias: Tensor | None, *, stride: Any, padding: Any, dilation: Any, groups: int
) -> Tensor:
    return F.conv2d(x, kernel, bias, stride, padding, dilation, groups)


def _grouped(
    x: Tensor, kernels: Tensor, bias: Tensor | None, *, stride: Any, padding: Any, dilation: Any, groups: int
) -> Tensor:
    """One convolution whose groups are the rows' own: kernels [n, O, C/groups, h, w]."""
    rows = len(kernels)
    wide = x.reshape(1, -1, *x.shape[2:])
    every = None if bias is None else bias.repeat(rows)
    y = F.conv2d(wide, kernels.flatten(0, 1), every, stride, padding, dilation, rows * groups)
    return y.view(rows, -1, *y.shape[2:])


def _multiplied(x: Tensor, kernels: Tensor, bias: Tensor | None, *, stride: Any) -> Tensor:
    """A 1x1 convolution as a matrix product per row: kernels [n, O, C, 1, 1]."""
    down, across = _pair(stride)
    x = x[:, :, ::down, ::across]
    columns, rows = x.flatten(2), kernels.flatten(2)
    y = torch.bmm(rows, columns) if bias is None else torch.baddbmm(bias[:, None], rows, columns)
    return y.view(*y.shape[:2], *x.shape[2:])


def _linear(x: Tensor, kernels: Tensor, bias: Tensor | None) -> Tensor:
    """Kernels [n, O, I]."""
    rows = kernels.transpose(1, 2)
    positions = x.reshape(len(kernels), -1, x.shape[-1])
    y = torch.bmm(positions, rows) if bias is None else torch.baddbmm(bias, positions, rows)
    return y.view(*x.shape[:-1], -1)


def _pair(value: Any) -> tuple[Any, Any]:
    """A literal per axis; "same" and "valid" pad nothing where a kernel has one position."""
    if isinstance(value, str):
        return 0, 0
    entries = [value] if isinstance(value, int) else list(value)
    return entries[0], entries[-1]


def _numbers(rows: Tensor) -> list[list[float]]:
    """Of one or two rows: sooner read in Python than tested in torch, which takes 2 to 6 microseconds."""
    return cast(Any, rows).tolist()


def _learns(rows: Tensor) -> bool:
    return torch.is_grad_enabled() and rows.requires_grad


LAYERS = (basis_conv2d, basis_linear)
"""Layers with a kernel per row; `deploy.fold` gives each its static form."""
