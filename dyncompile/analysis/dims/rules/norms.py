"""Normalizations: what they average over is not zero-equivalent."""

from __future__ import annotations

from torch import fx

from dyncompile.analysis.dims.algebra import size
from dyncompile.analysis.dims.call import Call, Size, TensorType, Type
from dyncompile.analysis.dims.table import rule


@rule("aten.batch_norm", "aten.instance_norm")
def batch_norm(call: Call) -> TensorType:
    """Per-channel statistics of ``x [B, C, *S]``; affine and running statistics are [C]."""
    x = call.type("input")
    for name in ("weight", "bias", "running_mean", "running_var"):
        if call.has(name):
            call.env.unify(x[1], call.type(name)[0])
    for name in ("running_mean", "running_var"):
        buffer = call.arguments[name]
        if isinstance(buffer, fx.Node):
            call.findings.statistics.append(buffer.name)
    if call.arguments.get("training", call.arguments.get("use_input_stats")):
        call.normalizes([dim for axis, dim in enumerate(x) if axis != 1], "batch norm's statistics")
    return x


@rule("aten.layer_norm", "aten.rms_norm", "aten.native_layer_norm", "aten._fused_rms_norm")
def layer_norm(call: Call) -> Type:
    """Statistics over the last ``len(normalized_shape)`` axes."""
    x = call.type("input")
    rank = len(call["normalized_shape"])
    inner = x[-rank:]
    for name in ("weight", "bias"):
        if call.has(name):
            for dim, other in zip(inner, call.type(name), strict=True):
                call.env.unify(dim, other)
    inner = tuple(map(call.env.normal, inner))
    kind = "RMS norm" if "rms" in str(call.node.target) else "layer norm"
    kind = kind if rank == 1 else f"{kind} over several axes"
    call.normalizes(inner, kind if call.has_rows else f"{kind} of parameters")
    call.rewrite(normalized_shape=[Size(dim) for dim in inner])
    if "native" not in str(call.node.target):
        return x
    rest: TensorType = (*x[:-rank], *[()] * rank)
    return [x, rest, rest]


@rule("aten.group_norm")
def group_norm(call: Call) -> TensorType:
    """Statistics within each of ``num_groups`` groups of channels of ``x [B, C, *S]``."""
    x = call.type("input")
    group, inner = call.env.split(x[1], int(call["num_groups"]))
    for name in ("weight", "bias"):
        if call.has(name):
            call.env.unify(x[1], call.type(name)[0])
    call.normalizes([inner, *x[2:]], "group norm")
    call.rewrite(num_groups=Size(group))
    return tuple(map(call.env.normal, x))


@rule("aten.softmax", "aten.log_softmax", "aten._softmax", "aten._log_softmax", "aten._safe_softmax")
def softmax(call: Call) -> TensorType:
    """Mixes one axis."""
    x = call.type("self")
    call.normalizes([x[call.axis("dim", len(x))]], "softmax")
    return x


@rule("aten._weight_norm_interface", "aten._weight_norm")
def weight_norm(call: Call) -> Type:
    """``v, g -> w``: a norm over all but one axis of ``v``."""
    v, g = call.type("v"), call.type("g")
    axis = call.axis("dim", len(v))
    for i, (a, b) in enumerate(zip(v, g, strict=True)):
        if i == axis or size(b) > 1:
            call.env.unify(a, b)
    call.normalizes([dim for i, dim in enumerate(v) if i != axis], "weight norm")
    return [v, g] if "interface" in str(call.node.target) else v
