"""Operators that passes inserted: at full capacity they change nothing, so they keep types."""

from __future__ import annotations

from dyncompile.analysis.dims.algebra import BATCH, size
from dyncompile.analysis.dims.call import Call, TensorType, Type
from dyncompile.analysis.dims.table import rule


@rule("prefix", "take")
def narrowed(call: Call) -> TensorType:
    """A parameter at its active widths has the parameter's type."""
    return call.type("tensor")


@rule("pick")
def picked(call: Call) -> TensorType:
    """The widest option is the source's own state; the others are copies whose widths are settled."""
    options = sorted(call.types("options"), key=lambda dims: [size(dim) for dim in dims])
    for dims in options[:-1]:
        for dim in dims:
            call.freeze(dim, "private state of one column")
    return options[-1]


@rule("gain")
def weighted(call: Call) -> TensorType:
    """A branch's output times one number per row."""
    return call.type("output")


@rule("mix")
def mixed(call: Call) -> TensorType:
    """Alternatives that are summed row by row: they move together."""
    first, *others = call.types("outputs")
    for other in others:
        for one, same in zip(first, other, strict=True):
            call.env.unify(one, same)
    return first


@rule("gains")
def columns(call: Call) -> TensorType:
    """One row per sample; what the positions are is known where they meet data."""
    _, positions = call.shape
    return (BATCH,), call.env.fresh(positions)


@rule("scale")
def scaled(call: Call) -> TensorType:
    """Positions of one axis, each times its gain."""
    dims, axis = call.type("x"), int(call["axis"])
    call.env.unify(call.type("gains")[1], dims[axis])
    call.reduces(*call.type("gains"))
    return call.type("x")


@rule("leave")
def left(call: Call) -> TensorType:
    """Either prediction: they move together."""
    final, early = call.type("final"), call.type("early")
    for one, same in zip(final, early, strict=True):
        call.env.unify(one, same)
    return call.type("final")


@rule("positions", "put", "decide", "extent", "active", "count")
def untyped(call: Call) -> Type:
    """Indices, decisions and effects carry no widths."""
    return None
