"""Layers with a kernel per row, see `dyncompile.runtime.synthesis`."""

from __future__ import annotations

from dyncompile.analysis.dims.algebra import BATCH
from dyncompile.analysis.dims.call import Call, TensorType
from dyncompile.analysis.dims.rules.contraction import convolved
from dyncompile.analysis.dims.table import rule


@rule("synthesize")
def synthesized(call: Call) -> TensorType:
    """``weight [*W], bases [N, *W] -> [B, *W]``: bases are typed like the weight, and narrowed with it."""
    weight, bases = call.type("weight"), call.type("bases")
    count = call.freeze(bases[0], "bases of a mixture: each is one coefficient's")
    for own, other in zip(weight, bases[1:], strict=True):
        call.env.unify(own, other)
    weight = call.type("weight")
    call.contracts((BATCH,), count, *weight)
    return ((BATCH,), *weight)


@rule("basis_conv2d")
def basis_convolution(call: Call) -> TensorType:
    """A convolution, with the type of any row's kernel."""
    return convolved(call, call.type("input"), call.type("weight")[1:])


@rule("basis_linear")
def basis_linear(call: Call) -> TensorType:
    """``x [B k, ..., I], weight [B, O, I] -> [B k, ..., O]``."""
    x, (_, rows, columns) = call.type("input"), call.type("weight")
    call.env.unify(x[-1], columns)
    if call.has("bias"):
        call.env.unify(call.type("bias")[0], rows)
    call.contracts(*x[:-1], rows, columns)
    return (*x[:-1], rows)
