"""Layers whose weight is put together for each sample from bases (BasisNet, CondConv, dynamic convolution).

    W(x) = W0 + sum_n a_n(x) D_n            W0 [*W], D [N, *W], a [B, N];  y = conv(x, W(x)) + b

With D = 0 this is W0 for any finite a. Rows whose coefficients are equal share one kernel, and all zeros
mean W0 itself: then the layer runs as the source's does, bit for bit. Other rows need kernels of their own.
What is fastest was measured (float32, one CPU thread, batches 1, 8, 32; ``benchmarks/synthesis.py``):

    one row                  the layer with the synthesized kernel; what that costs besides the layer, checks
                             and views included, is some 15 microseconds
    1x1 convolution, linear  matrix products: 1.0 to 2.1 times as fast as a (grouped) convolution
    maps of few positions    unfolded, matrix products: 0.82 to 0.88 of the time at 7x7 with 256 channels,
                             where arranging kernels is most of a convolution's work; 1.4 at 14x14
    other convolutions       one convolution with B times the groups; a loop takes 1.1 to 2.2 times as long,
                             depthwise ones in channels-last 1.5 to 4.4, by shifted sums 3.4 to 7.8
    many large kernels       in parts: whole kernels of several rows or, where few of these fit, some outputs
                             of the kernels of `TOGETHER` rows, so that all of them share one reading of the
                             bases. A 3x3 layer of 256 channels at 7x7 would hold 75 MB of kernels for 32 rows
    mixing                   addmm writes W0 into all rows first, and takes 1.6 to 2.1 times as long as the
                             product alone; of W0 beside the bases, copied there at each call, one product
                             takes 1.5 to 1.75 times as long at 32 rows

All kernels at once are as fast or faster (7 % at 32 rows of 256 channels at 7x7) where the allocator has such
memory at hand; where it gets it from the system anew at every call, parts take half of the time. A part holds
at most `CPU_KERNELS` (or `DEVICE_KERNELS`) numbers of kernels, one row's kernel, or one output's of
`TOGETHER` rows, at least. With gradients, parts are computed again in the backward pass, so that the bound
holds there, too.
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

CPU_KERNELS = 2**23
"""Numbers in all kernels that are held at once on a CPU: 32 MB in float32. Parts of an eighth, which a core's
cache holds, take 1.1 to 1.3 times as long; larger blocks glibc gets from the system at every call.
"""
DEVICE_KERNELS = 2**26
"""The same elsewhere: 256 MB in float32."""
TOGETHER = 8
"""Rows that share one reading of the bases, where kernels are so large that few fit."""
SMALL_MAP = 64
"""Output positions up to which unfolding a map is sooner done than arranging kernels for a convolution."""
STACKED = 4
"""From this many rows per kernel on, W0 and D are copied side by side, and mixed in one product."""
FEW = 16
"""Rows that are sooner read in Python than sliced or summed in torch."""
CONVEX = 1e-6
"""How far from 1 the sum of coefficients may be that are taken to sum to 1; softmax is 2e-7 off."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """One kernel per row, not computed yet.

    Attributes:
        weight: W0.
        bases: D [N, *W0.shape], or W0 + D where they are `whole`.
        coefficients: a [B, N], in the dtype of the weight.
        rounded: whether coefficients are rounded, so that equal rows are to be expected.
        whole: see `synthesize`.
    """

    weight: Tensor
    bases: Tensor
    coefficients: Tensor
    rounded: bool = False
    whole: bool = False

    @property
    def shared(self) -> bool:
        """Whether one kernel serves all rows: their coefficients are equal and take no gradient."""
        rows = self.coefficients
        if rows.shape[0] < 2:
            return True
        if _learns(rows):
            return False
        first, second = _numbers(rows if len(rows) <= FEW else rows[:2])[:2]  # most batches part here
        return first == second and bool((rows == rows[:1]).all())

    def single(self, row: int = 0) -> Tensor:
        """The kernel of one row; W0 itself where its coefficients are 0, or where there is no row."""
        weight, rows = self.weight, self.coefficients
        if rows.shape[0] != 1:
            rows = rows[row : row + 1]
        if not rows.shape[0] or not (_learns(rows) or any(_numbers(rows)[0])):
            return weight
        return _synthesized(*self.parts(rows)).view(weight.shape)

    def parts(self, rows: Tensor) -> Parts:
        """What kernels of coefficients [n, N] are summed of: W0 if it is added, what is mixed, and how."""
        weight, bases = self.weight, self.bases
        if self.whole:
            few = len(rows) <= FEW
            totals = map(sum, _numbers(rows)) if few else cast(Any, rows.sum(1)).tolist()
            if all(abs(total - 1) <= CONVEX for total in totals):
                return None, bases, rows
            return None, *_side_by_side(weight, bases, 1 - rows.sum(1, keepdim=True), rows)
        many = len(rows) >= STACKED * (len(bases) + 1) and not torch.is_grad_enabled()
        if many and bases.numel() + weight.numel() <= CPU_KERNELS:
            return None, *_side_by_side(weight, bases, rows.new_ones(len(rows), 1), rows)
        return weight, bases, rows


Parts = tuple[Tensor | None, Tensor, Tensor]


def _side_by_side(weight: Tensor, bases: Tensor, first: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat((weight[None], bases)), torch.cat((first, rows), 1)


Own = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""``layer(x, kernel or kernels, bias)``."""


def synthesize(
    weight: Tensor, bases: Tensor, decision: Decision, start: int, step: float, whole: bool = False
) -> Kernels:
    """Kernels whose coefficients are the columns of a decision from `start` on, one per basis.

    A `step` above 0 rounds them to its multiples (straight-through): rows that round alike share a kernel.
    Bases that are `whole` are kernels V = W0 + D themselves (`deploy.packing`): W = (1 - sum a) W0 + sum a V,
    where coefficients that sum to one leave W0 unread.
    """
    rows, count = decision.rows, bases.shape[0]
    if rows.shape[1] != count:
        rows = rows.narrow(1, start, count)
    if rows.dtype is not weight.dtype or rows.device != weight.device:
        rows = rows.to(weight.device, weight.dtype)
    if step:
        rounded = (rows.detach() / step).round() * step
        rows = rounded + (rows - rows.detach()) if _learns(rows) else rounded
    return Kernels(weight, bases, rows, bool(step), whole)


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
    pointwise = groups == 1 and weight.weight.shape[2:] == (1, 1) and not any(_pair(padding))
    if weight.shared:
        kernel = weight.single()
        if pointwise and input.shape[0] == 1 and kernel is not weight.weight:
            return _multiplied(input, kernel.unsqueeze(0), bias, stride=stride)
        return F.conv2d(input, kernel, bias, stride, padding, dilation, groups)
    one = partial(_convolved, stride=stride, padding=padding, dilation=dilation, groups=groups)
    if pointwise:
        return _mixed(input, weight, bias, one, partial(_multiplied, stride=stride), 1)
    sides = _small_map(input, weight.weight, stride, padding, dilation) if groups == 1 else None
    if sides is not None:
        unfold = partial(_unfolded, kernel=weight.weight.shape[2:], **_options(stride, padding, dilation))
        return _mixed(input, weight, bias, one, partial(_columns, sides=sides), 1, unfold)
    many = partial(_grouped, stride=stride, padding=padding, dilation=dilation, groups=groups)
    return _mixed(input, weight, bias, one, many, 1 if groups == 1 else None)


def basis_linear(input: Tensor, weight: Kernels, bias: Tensor | None) -> Tensor:
    """``[B k, ..., I] -> [B k, ..., O]``: the k positions of axis 0 that belong to row i meet kernel i."""
    if weight.shared:
        return F.linear(input, weight.single(), bias)
    return _mixed(input, weight, bias, F.linear, _linear, -1)


def _mixed(
    x: Tensor,
    kernels: Kernels,
    bias: Tensor | None,
    one: Own,
    many: Own,
    axis: int | None,
    prepare: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Few kernels: the rows of each together; many: in parts.

    `axis` of the result has the kernels' outputs, if these may be computed apart from each other. `prepare`
    is what `many` wants done to its input before, once for all outputs.
    """
    rows, bound = kernels.coefficients, CPU_KERNELS if x.device.type == "cpu" else DEVICE_KERNELS
    if kernels.rounded and not _learns(rows):
        member = _groups(rows)
        if int(member.max()) < len(rows) // 2:
            return _by_kernel(x, kernels, bias, one, member)
    weight, bases, own = kernels.parts(rows)
    if len(rows) * kernels.weight.numel() <= bound:  # all at once: what comes below takes its time, too
        return many(x if prepare is None else prepare(x), _synthesized(weight, bases, own), bias)
    some, outputs = _part(len(rows), kernels.weight, bound, cut=axis is not None)
    whole = bases.shape[1]
    found: list[Tensor] = []
    for chunk, few in zip(_split(x, some * (len(x) // len(rows))), _split(own, some), strict=True):
        chunk = chunk if prepare is None else prepare(chunk)
        if some == len(rows) and outputs == whole:
            return _chunk(chunk, weight, bases, few, bias, many)
        count = -(-whole // outputs)
        weights, biases = ([None] * count if t is None else _split(t, outputs) for t in (weight, bias))
        blocks = [
            _again(_chunk, chunk, w, d, few, b, many)
            for w, d, b in zip(weights, _split(bases, outputs, 1), biases, strict=True)
        ]
        found.append(torch.cat(blocks, axis or 0) if len(blocks) > 1 else blocks[0])
    return torch.cat(found)


def _part(rows: int, weight: Tensor, bound: int, *, cut: bool) -> tuple[int, int]:
    """How many rows and how many outputs of each one's kernel are put together at once."""
    fit, outputs = bound // weight.numel(), len(weight)
    if fit >= min(rows, TOGETHER) or not cut:
        return _even(rows, max(1, fit)), outputs
    some = _even(rows, TOGETHER)
    return some, _even(outputs, max(1, bound // (some * weight[0].numel())))


def _even(whole: int, most: int) -> int:
    """Length of as few nearly equal parts as there must be of `most` each."""
    return -(-whole // -(-whole // most))


def _split(tensor: Tensor, size: int, axis: int = 0) -> tuple[Tensor, ...]:
    return cast(Any, tensor).split(size, axis)


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


def _chunk(
    x: Tensor, weight: Tensor | None, bases: Tensor, rows: Tensor, bias: Tensor | None, many: Own
) -> Tensor:
    return many(x, _synthesized(weight, bases, rows), bias)


def _synthesized(weight: Tensor | None, bases: Tensor, rows: Tensor) -> Tensor:
    """Kernels [n, *W] of coefficients [n, N]."""
    columns = bases.flatten(1)
    found = torch.mm(rows, columns) if weight is None else torch.addmm(weight.reshape(1, -1), rows, columns)
    return found.view(len(rows), *bases.shape[1:])


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


def _small_map(x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any) -> tuple[int, int] | None:
    """Sides of a convolution's output where it has so few positions that kernels are most of the work."""
    if isinstance(padding, str):
        return None
    sides = [
        (side + 2 * pad - step * (length - 1) - 1) // by + 1
        for side, length, by, pad, step in zip(
            x.shape[2:], weight.shape[2:], _pair(stride), _pair(padding), _pair(dilation), strict=True
        )
    ]
    return (sides[0], sides[1]) if sides[0] * sides[1] <= SMALL_MAP else None


def _options(stride: Any, padding: Any, dilation: Any) -> dict[str, tuple[Any, Any]]:
    return {"stride": _pair(stride), "padding": _pair(padding), "dilation": _pair(dilation)}


def _unfolded(x: Tensor, *, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Tensor:
    """What each position's kernel meets: ``[n, C, H, W] -> [n, C h w, positions]``."""
    return F.unfold(x, tuple(kernel), dilation, padding, stride)


def _columns(x: Tensor, kernels: Tensor, bias: Tensor | None, *, sides: tuple[int, int]) -> Tensor:
    """A convolution of `_unfolded` maps as a matrix product per row: kernels [n, O, C, h, w]."""
    rows = kernels.flatten(2)
    y = torch.bmm(rows, x) if bias is None else torch.baddbmm(bias[:, None], rows, x)
    return y.view(*y.shape[:2], *sides)


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
    """Of few rows: sooner read in Python than tested in torch, which takes 2 to 6 microseconds."""
    return cast(Any, rows).tolist()


def _learns(rows: Tensor) -> bool:
    return torch.is_grad_enabled() and rows.requires_grad


LAYERS = (basis_conv2d, basis_linear)
"""Layers with a kernel per row; `deploy.fold` gives each its static form."""
