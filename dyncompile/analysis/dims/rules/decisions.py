"""Operators that passes inserted: at full capacity they change nothing, so they keep types."""

from __future__ import annotations

from dyncompile.analysis.dims.algebra import size
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


@rule("positions", "put", "decide", "extent")
def untyped(call: Call) -> Type:
    """Indices, decisions and effects carry no widths."""
    return None
