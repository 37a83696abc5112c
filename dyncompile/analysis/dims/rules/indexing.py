"""Look-ups and factories."""

from __future__ import annotations

from dyncompile.analysis.dims.algebra import Dim, size
from dyncompile.analysis.dims.call import Call, TensorType, Type, fixed_type, meta, shape_of, sizes_of
from dyncompile.analysis.dims.rules.pointwise import broadcast
from dyncompile.analysis.dims.table import rule


@rule("aten.embedding")
def embedding(call: Call) -> TensorType:
    """``weight [V, C], indices [...] -> [..., C]``: any row may be asked for."""
    weight, indices = call.type("weight"), call.type("indices")
    call.freeze(weight[0], "rows that are looked up by index")
    return (*indices, *weight[1:])


@rule("aten.index", "aten._unsafe_index")
def index(call: Call) -> TensorType:
    """Axes indexed by tensors are fixed; the index tensors' own dims (batch, elastic) come in their place."""
    x = call.type("self")
    given = list(call.arguments["indices"])
    axes = [i for i, node in enumerate(given) if node is not None]
    for axis in axes:
        call.freeze(x[axis], "positions that are looked up by index")
    found = broadcast(call, [call.type_of(given[axis]) for axis in axes])
    together = axes == list(range(axes[0], axes[-1] + 1))
    at = axes[0] if together else 0
    rest: list[Dim] = [dim for i, dim in enumerate(x) if i not in axes]
    return (*rest[:at], *found, *rest[at:])


@rule("aten.index_select")
def index_select(call: Call) -> TensorType:
    """One axis is indexed."""
    x = list(call.type("self"))
    axis = call.axis("dim", len(x))
    call.freeze(x[axis], "positions that are looked up by index")
    x[axis] = call.type("index")[0]
    return tuple(x)


@rule("aten.gather", "aten.take_along_dim")
def gather(call: Call) -> TensorType:
    """One axis is indexed; on the others the index is as long as the tensor, or cuts it."""
    x, at = call.type("self"), call.type("index" if "index" in call.arguments else "indices")
    axis = call.axis("dim", len(x))
    out: list[Dim] = []
    for i, (dim, other) in enumerate(zip(x, at, strict=True)):
        if i != axis and size(dim) == size(other):
            out.append(call.env.unify(dim, other))
            continue
        call.freeze(dim, "positions that are looked up by index")
        out.append(other)
    return tuple(out)


@rule("aten.roll")
def roll(call: Call) -> TensorType:
    """A cyclic shift fixes the axes that it shifts."""
    x = call.type("self")
    for axis in call.axes("dims", len(x)):
        call.freeze(x[axis], "a cyclic shift along it")
    return tuple(map(call.env.normal, x))


@rule("aten.zeros", "aten.ones", "aten.full", "aten.empty", "aten.rand", "aten.randn")
def factory(call: Call) -> TensorType:
    """New extents: they may turn out to be elastic when the tensor meets others."""
    return _created(call)


@rule("aten.new_zeros", "aten.new_ones", "aten.new_full", "aten.new_empty")
def new_factory(call: Call) -> TensorType:
    """As a factory; `self` gives only dtype and device."""
    call.reduces(*call.type("self"))
    return _created(call)


def _created(call: Call) -> TensorType:
    out = tuple(call.env.fresh(n) for n in call.shape)
    call.rewrite(size=sizes_of("size", out))
    return out


@rule("aten.arange", "aten.linspace", "aten.scalar_tensor", "aten.eye", "aten.tensor", "aten.tril_indices")
def constant(call: Call) -> Type:
    """Values that encode positions: fixed (a batch-long range stays batched)."""
    return fixed_type(call.shape)


@rule("aten.meshgrid")
def meshgrid(call: Call) -> Type:
    """One axis per input."""
    dims = [t[0] if t else () for t in call.types("tensors")]
    if call.arguments.get("indexing") == "xy" and len(dims) > 1:
        dims[0], dims[1] = dims[1], dims[0]
    return [tuple(dims) for _ in dims]


@rule("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu")
def recurrent(call: Call) -> Type:
    """Recurrent layers keep their widths.

    The four gates share one weight whose layout differs per backend.
    """
    for t in call.tensors():
        for dim in t:
            call.freeze(dim, "a recurrent layer")
    call.findings.unmodeled = True
    outs = meta(call.node)
    return [fixed_type(shape_of(v)) for v in outs]


@rule("aten.one_hot")
def one_hot(call: Call) -> TensorType:
    """A new fixed axis of classes."""
    return (*call.type("self"), *fixed_type(call.shape[-1:]))
