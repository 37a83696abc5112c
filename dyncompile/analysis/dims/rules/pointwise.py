"""Element-by-element operators: broadcasting unifies, size 1 stretches."""

from __future__ import annotations

from collections.abc import Sequence

from dyncompile.analysis.dims.algebra import Dim, size
from dyncompile.analysis.dims.call import Call, TensorType
from dyncompile.analysis.dims.table import rule


def broadcast(call: Call, types: Sequence[TensorType]) -> TensorType:
    """The type of operands that are broadcast against each other, from the last axis on."""
    rank = max(map(len, types), default=0)
    out: list[Dim] = []
    for axis in range(-rank, 0):
        dims = [t[axis] for t in types if len(t) >= -axis and size(t[axis]) != 1]
        for other in dims[1:]:
            call.env.unify(dims[0], other)
        out.append(call.env.normal(dims[0]) if dims else ())
    return tuple(out)


@rule(
    "pointwise", "aten.copy", "aten.masked_fill", "aten.where", "aten.bernoulli", "aten.normal",
    "aten.hardswish", "aten.hardsigmoid", "aten.hardtanh", "aten._prelu_kernel", "aten.uniform", "aten.rrelu",
    "aten.floor_divide", "aten.bitwise_not", "aten.logical_not", "aten.__and__", "aten.__or__",
    "aten.__xor__", "aten.clip", "aten.square", "aten.true_divide", "aten.divide", "aten.multiply",
    "aten.subtract", "aten.selu", "aten.relu6", "aten.isfinite", "aten.softplus", "aten.greater", "aten.less",
    "aten.not_equal", "aten.negative", "aten.absolute",
)  # fmt: skip
def pointwise(call: Call) -> TensorType:
    """All tensor operands broadcast together."""
    return broadcast(call, call.tensors())


@rule(
    "aten.dropout", "aten.feature_dropout", "aten.alpha_dropout", "aten.clone", "aten.detach", "aten.alias",
    "aten.contiguous", "aten.to", "aten._to_copy", "aten.lift_fresh", "aten.lift_fresh_copy", "aten.zero",
    "aten.fill", "aten.zeros_like", "aten.ones_like", "aten.full_like", "aten.empty_like", "aten.rand_like",
    "aten.randn_like", "aten.type_as", "aten.nan_to_num", "aten.detach_copy",
    "aten.triu", "aten.tril", "aten.requires_grad", "aten.conj", "aten.resolve_conj", "aten.resolve_neg",
    "aten.view_as_real_copy",
)  # fmt: skip
def same(call: Call) -> TensorType:
    """The output has the type of the first operand; later tensor operands give only a dtype or a value."""
    first = next(iter(call.arguments.values()))
    for other in call.tensors()[1:]:
        call.reduces(*other)
    return call.type_of(first)


@rule("aten.prelu")
def prelu(call: Call) -> TensorType:
    """``weight`` [C] or [1] acts on axis 1: not the broadcasting of pointwise operators."""
    x, weight = call.type("self"), call.type("weight")
    if size(weight[0]) > 1:
        call.env.unify(x[1], weight[0])
    return x


@rule("aten.glu")
def glu(call: Call) -> TensorType:
    """Two equal halves of one axis, multiplied."""
    x = list(call.type("self"))
    axis = call.axis("dim", len(x))
    half = size(x[axis]) // 2
    first, second = call.env.cut(x[axis], 0, half), call.env.cut(x[axis], half, 2 * half)
    x[axis] = call.env.unify(first, second)
    return tuple(x)
