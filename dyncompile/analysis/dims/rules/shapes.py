"""Views, permutations, concatenations, slices: where dims are regrouped."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from dyncompile.analysis.dims.algebra import Dim, Misaligned, Sum, fixed, is_batched, size
from dyncompile.analysis.dims.call import Call, Given, Size, TensorType, Type, meta, shape_of, sizes_of
from dyncompile.analysis.dims.table import rule
from dyncompile.torchlib import items

aten = torch.ops.aten


@rule("aten.view.default", "aten.reshape", "aten._unsafe_view", "aten.unflatten", "aten._reshape_alias")
def view(call: Call) -> TensorType:
    """Row-major regrouping; under slicing a view may need a copy, so it becomes a reshape."""
    out = regroup(call, call.type("self"), call.shape)
    name = next((n for n in ("size", "shape") if n in call.arguments), None)
    sizes = sizes_of(name, out) if name else [Size(dim) for dim in out]
    call.rewrite(target=aten.reshape.default, self=Given("self"), shape=sizes)
    return out


@rule("aten.flatten", "aten.reshape_as", "aten.view_as", "aten.ravel")
def reshape_without_literals(call: Call) -> TensorType:
    """Regroupings whose arguments name axes or tensors, not sizes: nothing to rewrite."""
    for other in call.tensors()[1:]:
        call.reduces(*other)
    return regroup(call, call.type("self"), call.shape)


def regroup(call: Call, x: TensorType, shape: Sequence[int]) -> TensorType:
    """Reshape block by block, so that a misaligned block freezes itself alone."""
    out: list[Dim] = []
    i = j = 0
    while i < len(x) or j < len(shape):
        left, right = i + (i < len(x)), j + (j < len(shape))
        have, want = _numel(x[i:left]), _product(shape[j:right])
        while have != want:
            if have < want:
                have *= size(x[left])
                left += 1
            else:
                want *= shape[right]
                right += 1
        out += _regroup_block(call, x[i:left], shape[j:right])
        i, j = left, right
    return tuple(out)


def _regroup_block(call: Call, dims: TensorType, sizes: Sequence[int]) -> list[Dim]:
    try:
        return call.env.reshape(dims, sizes)
    except Misaligned as error:
        for dim in dims:
            call.freeze(dim, f"reshape does not align: {error}")
        return [fixed(n) for n in sizes]


def _numel(dims: Sequence[Dim]) -> int:
    return _product([size(dim) for dim in dims])


def _product(sizes: Sequence[int]) -> int:
    total = 1
    for n in sizes:
        total *= n
    return total


@rule("aten.expand", "aten.broadcast_to")
def expand(call: Call) -> TensorType:
    """Axes of size 1 stretch to a new extent, which may turn out to be elastic."""
    x, shape = call.type("self"), call.shape
    lead = len(shape) - len(x)
    out = tuple(
        x[i - lead] if i >= lead and size(x[i - lead]) == n else call.env.fresh(n)
        for i, n in enumerate(shape)
    )
    call.rewrite(size=sizes_of("size", out))
    return out


@rule("aten.expand_as")
def expand_as(call: Call) -> TensorType:
    """The sizes come from a tensor: nothing to rewrite."""
    x, other = call.type("self"), call.type("other")
    lead = len(other) - len(x)
    return tuple(
        call.env.unify(x[i - lead], dim) if i >= lead and size(x[i - lead]) != 1 else dim
        for i, dim in enumerate(other)
    )


@rule("aten.repeat", "aten.tile")
def repeat(call: Call) -> TensorType:
    """Whole copies in front of each axis; a repeated size-1 axis is a new extent."""
    counts: list[int] = call["repeats"] if "repeats" in call.arguments else call["dims"]
    x = call.type("self")
    counts = [1] * (len(x) - len(counts)) + counts
    x = (*[()] * (len(counts) - len(x)), *x)
    out = tuple(
        call.env.fresh(n) if size(dim) == 1 else call.env.normal(fixed(n) + dim)
        for n, dim in zip(counts, x, strict=True)
    )
    name = "repeats" if "repeats" in call.arguments else "dims"
    entries = [Size(new) if size(old) == 1 else n for n, old, new in zip(counts, x, out, strict=True)]
    call.rewrite(**{name: entries}, when=[new for old, new in zip(x, out, strict=True) if size(old) == 1])
    return out


@rule("aten.repeat_interleave.self_int")
def repeat_interleave(call: Call) -> TensorType:
    """Each position of one axis `repeats` times: the copies are the inner factor."""
    x = list(call.type("self"))
    if call["dim"] is None:
        raise Misaligned("repeat_interleave of a flattened tensor")
    axis, count = call.axis("dim", len(x)), call.env.fresh(int(call["repeats"]))
    x[axis] = call.env.normal(x[axis] + count)
    call.rewrite(repeats=Size(count))
    return tuple(x)


@rule("aten.permute")
def permute(call: Call) -> TensorType:
    """Axes in another order."""
    x = call.type("self")
    return tuple(x[int(axis)] for axis in items(call["dims"]))


@rule("aten.transpose", "aten.swapaxes", "aten.swapdims", "aten.t", "aten.mT", "aten.movedim.int")
def transpose(call: Call) -> TensorType:
    """Two axes change places (the last two where none are named)."""
    x = list(call.type("self"))
    names = [n for n in ("dim0", "dim1", "axis0", "axis1", "source", "destination") if n in call.arguments]
    a, b = [call.axis(n, len(x)) for n in names] if names else (len(x) - 2, len(x) - 1)
    if "source" in names:
        x.insert(b, x.pop(a))
    elif len(x) > 1:
        x[a], x[b] = x[b], x[a]
    return tuple(x)


@rule("aten.numpy_T", "aten.matrix_H")
def reversed_axes(call: Call) -> TensorType:
    """``x.T``: all axes in reverse order."""
    return call.type("self")[::-1]


@rule("aten.unsqueeze")
def unsqueeze(call: Call) -> TensorType:
    """A new axis of size 1."""
    x = list(call.type("self"))
    x.insert(call.axis("dim", len(x) + 1), ())
    return tuple(x)


@rule("aten.squeeze")
def squeeze(call: Call) -> TensorType:
    """Axes of size 1 go (all of them, or the named ones), but not those that have become 1 by narrowing."""
    x = call.type("self")
    axes = call.axes("dim", len(x)) if "dim" in call.arguments else range(len(x))
    asked = [i for i in axes if size(x[i]) == 1 or is_batched(x[i])]
    call.rewrite(
        target=aten.squeeze.dims, when=[x[i] for i in axes if i not in asked], self=Given("self"), dim=asked
    )
    return tuple(dim for i, dim in enumerate(x) if not (i in axes and size(dim) == 1))


@rule("aten.cat", "aten.concat", "aten.concatenate")
def cat(call: Call) -> TensorType:
    """One axis is the sum of the parts' axes; all others move together."""
    parts = [t for t in call.types("tensors") if [size(dim) for dim in t] != [0]]
    axis = call.axis("dim", len(parts[0]))
    out = list(parts[0])
    for other in parts[1:]:
        for i, dim in enumerate(other):
            if i != axis:
                call.env.unify(out[i], dim)
    out[axis] = (Sum(tuple(t[axis] for t in parts)),)
    return tuple(map(call.env.normal, out))


@rule("aten.stack")
def stack(call: Call) -> TensorType:
    """A new fixed axis that counts the parts."""
    parts = call.types("tensors")
    for other in parts[1:]:
        for a, b in zip(parts[0], other, strict=True):
            call.env.unify(a, b)
    out = list(map(call.env.normal, parts[0]))
    out.insert(call.axis("dim", len(out) + 1), fixed(len(parts)))
    return tuple(out)


@rule("aten.slice", "aten.narrow")
def slice_(call: Call) -> TensorType:
    """A range of one axis; its bounds are sizes of what lies before it."""
    x = list(call.type("self"))
    axis = call.axis("dim", len(x))
    if "length" in call.arguments:
        low, high, step = int(call["start"]), int(call["start"]) + int(call["length"]), 1
    else:
        low, high, step = slice(call["start"], call["end"], call["step"]).indices(size(x[axis]))
    if step != 1:
        x[axis] = _strided(call, x[axis], low, high, step)
        return tuple(x)
    if (low, high) == (0, size(x[axis])):
        return tuple(x)
    before, inside = _cut(call, x[axis], low), _range(call, x[axis], low, high)
    call.reduces(x[axis])  # what the range leaves out may still move
    start = Size(before) if low else 0
    end = Size((Sum((before, inside)),)) if low else Size(inside)
    if "length" in call.arguments:
        call.rewrite(start=start, length=Size(inside))
    else:
        call.rewrite(start=start, end=end)
    x[axis] = inside
    return tuple(x)


def _cut(call: Call, dim: Dim, high: int) -> Dim:
    return _range(call, dim, 0, high) if high else (0,)


def _range(call: Call, dim: Dim, low: int, high: int) -> Dim:
    try:
        return call.env.cut(dim, low, high)
    except Misaligned as error:
        call.freeze(dim, f"a slice does not align: {error}")
        return fixed(high - low)


def _strided(call: Call, dim: Dim, low: int, high: int, step: int) -> Dim:
    """Every step-th position: the step is an inner factor that is fixed."""
    n = size(dim)
    count = len(range(low, high, step))
    if n % step or count != n // step:
        call.freeze(dim, "a strided slice does not align")
        return fixed(count)
    outer, inner = call.env.split(dim, n // step)
    call.freeze(inner, "a strided slice picks one of its positions")
    call.rewrite(end=sys.maxsize, when=[outer])
    return outer


@rule("aten.split", "aten.split_with_sizes", "aten.chunk", "aten.tensor_split")
def split(call: Call) -> Type:
    """Consecutive ranges of one axis."""
    x = call.type("self")
    axis = call.axis("dim", len(x))
    values = meta(call.node)
    parts: list[Dim] = []
    offset = 0
    for value in values:
        n = shape_of(value)[axis]
        parts.append(_range(call, x[axis], offset, offset + n))
        offset += n
    call.rewrite(
        target=aten.split_with_sizes.default,
        self=Given("self"),
        split_sizes=[Size(part) for part in parts],
        dim=axis,
    )
    return [(*x[:axis], part, *x[axis + 1 :]) for part in parts]


@rule("aten.select")
def select(call: Call) -> TensorType:
    """One position of an axis: that axis cannot move."""
    x = list(call.type("self"))
    axis = call.axis("dim", len(x))
    call.freeze(x[axis], "one position of it is selected")
    del x[axis]
    return tuple(x)


@rule("aten.unbind")
def unbind(call: Call) -> Type:
    """Every position of an axis apart: that axis cannot move."""
    x = list(call.type("self"))
    axis = call.axis("dim", len(x))
    count = size(x[axis])
    call.freeze(x[axis], "its positions are unbound")
    del x[axis]
    return [tuple(x) for _ in range(count)]


@rule("aten.as_strided")
def as_strided(call: Call) -> TensorType:
    """Only the no-op that some pooling emits; anything else freezes its input."""
    value = meta(call.arguments["self"])
    shape = shape_of(value)
    strides = [s for s, n in zip(value.stride(), shape, strict=True) if n != 1]
    same = [s for s, n in zip(call["stride"], shape, strict=False) if n != 1]
    if list(shape) != list(call["size"]) or strides != same or call["storage_offset"]:
        raise Misaligned("as_strided that is not the identity")
    x = call.type("self")
    call.rewrite(target=aten.alias.default, when=list(x), self=Given("self"))
    return x
