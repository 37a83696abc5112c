"""Pooling, padding, resampling, pixel shuffles: spatial axes are fixed, channels pass through."""

from __future__ import annotations

from dyncompile.analysis.dims.algebra import Dim, Sum, fixed, size
from dyncompile.analysis.dims.call import Call, TensorType, Type, Unsupported, fixed_type, meta
from dyncompile.analysis.dims.table import rule
from dyncompile.torchlib import is_several, items


@rule(
    "aten.max_pool1d", "aten.max_pool2d", "aten.max_pool3d", "aten.max_pool2d_with_indices",
    "aten.avg_pool1d", "aten.avg_pool2d", "aten.avg_pool3d", "aten.adaptive_avg_pool1d",
    "aten.adaptive_avg_pool2d", "aten.adaptive_avg_pool3d", "aten._adaptive_avg_pool2d",
    "aten._adaptive_avg_pool3d", "aten.adaptive_max_pool1d", "aten.adaptive_max_pool2d",
    "aten.upsample_bilinear2d", "aten.upsample_nearest1d", "aten.upsample_nearest2d",
    "aten.upsample_nearest3d", "aten.upsample_bicubic2d", "aten.upsample_linear1d",
    "aten.upsample_trilinear3d", "aten._upsample_bicubic2d_aa", "aten._upsample_bilinear2d_aa",
    "aten._upsample_nearest_exact2d", "aten.reflection_pad1d", "aten.reflection_pad2d",
    "aten.replication_pad1d", "aten.replication_pad2d", "aten.grid_sampler",
)  # fmt: skip
def spatial(call: Call) -> Type:
    """All axes after the channels are spatial; the input is [(B,) C, *S] with S named by the operator."""
    x = call.type_of(next(iter(call.arguments.values())))
    count = 1 if "1d" in str(call.node.target) else 3 if "3d" in str(call.node.target) else 2
    for other in call.tensors()[1:]:
        for dim in other:
            call.freeze(dim, "a sampling grid")
    for dim in x[-count:]:
        call.freeze(dim, "a spatial axis that is pooled, padded or resampled")
    out = (*x[:-count], *(fixed(n) for n in call.shape[-count:]))
    value = meta(call.node)
    return [out for _ in items(value)] if is_several(value) else out


@rule("aten.pad", "aten.constant_pad_nd")
def pad(call: Call) -> TensorType:
    """Constant padding concatenates fixed positions.

    Other modes read the axis and fix it; negative pads cut.
    """
    x = list(call.type("self"))
    amounts: list[int] = call["pad"]
    if call.arguments.get("mode", "constant") != "constant":
        return _padded_by_reading(call, x, amounts)
    for i in range(len(amounts) // 2):
        low, high = amounts[2 * i : 2 * i + 2]
        axis = -1 - i
        if low < 0 or high < 0:
            call.freeze(x[axis], "negative padding cuts it")
            x[axis] = fixed(size(x[axis]) + low + high)
        elif low or high:
            parts: list[Dim] = [fixed(n) if isinstance(n, int) else n for n in (low, x[axis], high) if n != 0]
            x[axis] = call.env.normal((Sum(tuple(parts)),))
    return tuple(x)


def _padded_by_reading(call: Call, x: list[Dim], amounts: list[int]) -> TensorType:
    for i in range(len(amounts) // 2):
        if any(amounts[2 * i : 2 * i + 2]):
            call.freeze(x[-1 - i], "padding that reads it")
            x[-1 - i] = fixed(call.shape[-1 - i])
    return tuple(x)


@rule("aten.pixel_shuffle")
def pixel_shuffle(call: Call) -> TensorType:
    """``[.., C r r, H, W] -> [.., C, H r, W r]``: the r x r inner factor is fixed."""
    x = call.type("self")
    _freeze_space(call, x)
    channels, inner = call.env.split(x[-3], call.shape[-3])
    call.freeze(inner, "positions of a pixel shuffle")
    return (*x[:-3], channels, *(fixed(n) for n in call.shape[-2:]))


@rule("aten.pixel_unshuffle")
def pixel_unshuffle(call: Call) -> TensorType:
    """``[.., C, H r, W r] -> [.., C r r, H, W]``."""
    x = call.type("self")
    _freeze_space(call, x)
    inner = call.shape[-3] // size(x[-3])
    return (*x[:-3], call.env.normal(x[-3] + fixed(inner)), *(fixed(n) for n in call.shape[-2:]))


@rule("aten.im2col")
def im2col(call: Call) -> TensorType:
    """``[B, C, H, W] -> [B, C k k, L]``."""
    x = call.type("self")
    _freeze_space(call, x)
    inner = call.shape[1] // size(x[1])
    return (x[0], call.env.normal(x[1] + fixed(inner)), fixed(call.shape[2]))


@rule("aten.col2im")
def col2im(call: Call) -> TensorType:
    """``[B, C k k, L] -> [B, C, H, W]``: overlapping windows are summed."""
    x = call.type("self")
    call.freeze(x[2], "windows that are folded")
    channels, inner = call.env.split(x[1], call.shape[1])
    call.freeze(inner, "kernel positions of a fold")
    return (x[0], channels, *(fixed(n) for n in call.shape[2:]))


@rule("aten.unfold")
def unfold(call: Call) -> TensorType:
    """Sliding windows along one axis."""
    x = list(call.type("self"))
    axis = call.axis("dimension", len(x))
    call.freeze(x[axis], "sliding windows along it")
    x[axis] = fixed(call.shape[axis])
    return (*x, fixed(call.shape[-1]))


@rule("aten.channel_shuffle", "aten.native_channel_shuffle")
def channel_shuffle(call: Call) -> TensorType:
    """``C = groups x inner`` becomes ``inner x groups``."""
    x = list(call.type("self"))
    group, inner = call.env.split(x[1], int(call["groups"]))
    call.freeze(group, "the groups of a channel shuffle")
    x[1] = call.env.normal(inner + group)
    return tuple(x)


def _freeze_space(call: Call, x: TensorType) -> None:
    if len(x) < 3:
        raise Unsupported("an input without spatial axes")
    for dim in x[-2:]:
        call.freeze(dim, "a spatial axis")


@rule("aten.affine_grid_generator")
def affine_grid(call: Call) -> TensorType:
    """A grid of fixed size."""
    for t in call.tensors():
        for dim in t:
            call.freeze(dim, "an affine grid")
    return fixed_type(call.shape)
