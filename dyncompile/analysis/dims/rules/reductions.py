"""Reductions. Sums and 2-norms ignore masked zeros; means and extrema do not."""

from __future__ import annotations

from dyncompile.analysis.dims.algebra import Dim
from dyncompile.analysis.dims.call import Call, TensorType, Type, kept_where_equal, meta, shape_of
from dyncompile.analysis.dims.rules.pointwise import pointwise
from dyncompile.analysis.dims.table import rule
from dyncompile.torchlib import is_several, items


def _axes(call: Call, rank: int) -> list[int]:
    return call.axes("dim", rank) if "dim" in call.arguments else list(range(rank))


def _reduced(call: Call) -> tuple[Type, list[Dim]]:
    """(type of the output, dims that are gone); several outputs share one type."""
    x = call.type_of(next(iter(call.arguments.values())))
    axes = _axes(call, len(x))
    keep = len(call.shape) == len(x)
    out: TensorType = tuple(() if i in axes else dim for i, dim in enumerate(x) if keep or i not in axes)
    value = meta(call.node)
    several: Type = [out for _ in items(value)] if is_several(value) else out
    return several, [x[i] for i in axes]


@rule("aten.sum", "aten.linalg_vector_norm", "aten.norm", "aten.frobenius_norm", "aten.count_nonzero")
def total(call: Call) -> Type:
    """Zeros add nothing: zero-equivalent, but for parameters, whose positions are not zeroed."""
    out, gone = _reduced(call)
    call.sums(*gone)
    return out


@rule(
    "aten.mean", "aten.amax", "aten.amin", "aten.max", "aten.min", "aten.var", "aten.var_mean", "aten.std",
    "aten.std_mean", "aten.logsumexp", "aten.argmax", "aten.argmin", "aten.any", "aten.all", "aten.prod",
)  # fmt: skip
def mixing(call: Call) -> Type:
    """The result depends on how many positions there are: not zero-equivalent."""
    out, gone = _reduced(call)
    call.normalizes(gone, str(call.node.target).split(".")[1])
    return out


@rule("aten.max.other", "aten.min.other")
def extremum(call: Call) -> Type:
    """The binary forms are pointwise."""
    return pointwise(call)


@rule(
    "aten.cumsum",
    "aten.cumprod",
    "aten.diff",
    "aten.sort",
    "aten.argsort",
    "aten.topk",
    "aten.flip",
    "aten.median",
)
def along_axis(call: Call) -> Type:
    """Positions of one axis depend on their neighbors: the axis stays whole."""
    x = list(call.type_of(next(iter(call.arguments.values()))))
    name = next((name for name in ("dims", "dim") if name in call.arguments), None)
    axes = call.axes(name, len(x)) if name else list(range(len(x)))
    for axis in axes:
        call.freeze(x[axis], f"{call.node.target} along it")
    value = meta(call.node)
    outs: list[Type] = [kept_where_equal(x, shape_of(v)) for v in items(value)]
    return outs if is_several(value) else outs[0]
