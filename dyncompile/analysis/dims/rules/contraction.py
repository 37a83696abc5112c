"""Products: linear, matmul, convolutions, attention. They carry the MACs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dyncompile.analysis.dims.algebra import Dim, Misaligned, fixed, size
from dyncompile.analysis.dims.call import Call, Decompose, Size, TensorType, Unsupported
from dyncompile.analysis.dims.rules.pointwise import broadcast
from dyncompile.analysis.dims.table import rule
from dyncompile.torchlib import items


@rule("aten.linear")
def linear(call: Call) -> TensorType:
    """``x [..., K], weight [N, K] or [K], bias [N] -> [..., N]``."""
    x, weight = call.type("input"), call.type("weight")
    call.env.unify(x[-1], weight[-1])
    if call.has("bias"):
        call.env.unify(call.type("bias")[0], weight[0])
    call.sums(x[-1])
    call.contracts(*x[:-1], *weight)
    return (*x[:-1], *weight[:-1])


@rule("aten.matmul", "aten.mm", "aten.bmm", "aten.mv", "aten.dot")
def matmul(call: Call) -> TensorType:
    """Batched matrix product with broadcast leading axes; vectors contract their only axis."""
    a, b = (call.type_of(node) for node in list(call.arguments.values())[:2])
    inner = b[-2:][0]  # the only axis of a vector
    call.env.unify(a[-1:][0], inner)
    lead = broadcast(call, [a[:-2], b[:-2]]) if len(a) > 1 and len(b) > 1 else (a[:-2] or b[:-2])
    rows, columns = a[-2:-1], b[1:][-1:]
    call.sums(inner)
    call.contracts(*lead, *rows, inner, *columns)
    return (*lead, *rows, *columns)


@rule("aten.addmm", "aten.baddbmm", "aten.addbmm", "aten.addmv")
def addmm(call: Call) -> TensorType:
    """``self + a @ b``."""
    base, a, b = (call.type_of(node) for node in list(call.arguments.values())[:3])
    call.env.unify(a[-1], b[-2])
    if len(a) == 3:
        call.env.unify(a[0], b[0])
    out = (*a[:-1], b[-1])
    call.sums(a[-1])
    call.contracts(*out, a[-1])
    return broadcast(call, [out, base])


@rule("aten.outer", "aten.ger")
def outer(call: Call) -> TensorType:
    """``[N], [M] -> [N, M]``."""
    a, b = (call.type_of(node) for node in list(call.arguments.values())[:2])
    return (a[0], b[0])


@rule("aten.einsum")
def einsum(call: Call) -> TensorType:
    """One letter, one dim; a product of two operands costs the product of all letters that both need.

    Where nothing is summed over both, torch multiplies element by element, which is not counted anywhere.
    """
    operands = call.types("tensors")
    if len(operands) != 2:
        raise Decompose  # the cost depends on the order in which the operands are taken
    inputs, output = _subscripts(call["equation"], [len(t) for t in operands])
    dims: dict[str, Dim] = {}
    for letters, operand in zip(inputs, operands, strict=True):
        for letter, dim in zip(letters, operand, strict=True):
            known = dims.get(letter, ())
            dims[letter] = call.env.unify(known, dim) if 1 not in (size(known), size(dim)) else known or dim
    summed = [x for x, dim in dims.items() if x not in output and size(dim) != 1]
    alone = [x for x in summed if not all(x in letters for letters in inputs)]
    call.sums(*(dims[x] for x in summed))
    if len(summed) > len(alone):
        call.contracts(*(dim for x, dim in dims.items() if x not in alone))
    return tuple(call.env.normal(dims[letter]) for letter in output)


def _subscripts(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Letters per operand and of the output; an ellipsis becomes Greek ones, from the right."""
    left, arrow, output = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        plain = left.replace(",", "").replace("...", "")
        output = "..." * ("..." in left) + "".join(sorted(x for x in set(plain) if plain.count(x) == 1))
    hidden = [rank - len(term) + 3 if "..." in term else 0 for term, rank in zip(terms, ranks, strict=True)]
    extra = "".join(chr(0x3B1 + i) for i in range(max(hidden)))  # Greek letters cannot be in an equation
    inputs = [t.replace("...", extra[len(extra) - n :]) for t, n in zip(terms, hidden, strict=True)]
    return inputs, output.replace("...", extra)


@rule("aten.conv1d", "aten.conv2d", "aten.conv3d")
def convolution(call: Call) -> TensorType:
    """``x [B, C, *S], weight [O, C/groups, *K] -> [B, O, *S']``.

    An axis that keeps its length keeps its type; a kernel that slides over it reads neighbors.
    """
    return convolved(call, call.type("input"), call.type("weight"))


def convolved(call: Call, x: TensorType, weight: TensorType) -> TensorType:
    """The same for the type of one kernel."""
    _check_batched(x, weight)
    for dim in weight[2:]:
        call.freeze(dim, "kernel positions")
    out, fan_in = _channels(call, x[1], weight[0], weight[1])
    if call.has("bias"):
        call.env.unify(call.type("bias")[0], out)
    space = _space(call, x, weight)
    call.sums(fan_in)
    call.contracts(x[0], out, fan_in, *space, *(fixed(size(k)) for k in weight[2:]))
    return (x[0], call.env.normal(out), *space)


def _check_batched(x: TensorType, weight: TensorType) -> None:
    if len(x) != len(weight):
        raise Unsupported("a convolution without a batch axis")


def _channels(call: Call, channels: Dim, rows: Dim, fan_in: Dim) -> tuple[Dim, Dim]:
    """Unify the channel dims of a convolution; returns (output channels, inputs per output)."""
    groups = int(call["groups"])
    if groups == 1:
        call.env.unify(channels, fan_in)
        return rows, fan_in
    try:
        group, inner = call.env.split(channels, groups)
        call.env.align(inner, fan_in)
        other, per_group = call.env.split(rows, groups)
        call.env.align(group, other)
    except Misaligned as error:
        for dim in (channels, rows, fan_in):
            call.freeze(dim, f"groups do not align: {error}")
        return rows, fan_in
    call.rewrite(groups=Size(call.env.normal(group)))
    return call.env.normal(group + per_group), fan_in


def _space(call: Call, x: TensorType, weight: TensorType) -> list[Dim]:
    """Spatial output dims.

    The input's are frozen unless stride 1 and padding keep the length position by position.
    """
    out: list[Dim] = []
    for axis, (dim, n) in enumerate(zip(x[2:], call.shape[2:], strict=True)):
        if _keeps_length(call, axis, size(weight[2 + axis])):
            out.append(dim)
            call.normalizes([dim] if size(weight[2 + axis]) > 1 else [], "convolution")
            continue
        call.freeze(dim, "a spatial axis of a convolution")
        out.append(fixed(n))
    return out


def _keeps_length(call: Call, axis: int, kernel: int) -> bool:
    stride, reach = _at(call["stride"], axis), _at(call["dilation"], axis) * (kernel - 1)
    if isinstance(call["padding"], str):
        return stride == 1 and (reach == 0 or (call["padding"] == "same" and reach % 2 == 0))
    return stride == 1 and 2 * _at(call["padding"], axis) == reach


def _at(value: Any, axis: int) -> int:
    """An entry of a per-axis literal; a single entry holds for all axes."""
    entries = items(value)
    return int(entries[min(axis, len(entries) - 1)])


@rule("aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d")
def transposed_convolution(call: Call) -> TensorType:
    """``x [B, C, *S], weight [C, O/groups, *K] -> [B, O, *S']``."""
    x, weight = call.type("input"), call.type("weight")
    _check_batched(x, weight)
    for dim in (*weight[2:], *x[2:]):
        call.freeze(dim, "a spatial axis of a transposed convolution")
    call.env.unify(x[1], weight[0])
    out = weight[1]
    groups = int(call["groups"])
    if groups > 1:
        group, _ = call.env.split(weight[0], groups)
        call.rewrite(groups=Size(group))
        out = group + weight[1]
    if call.has("bias"):
        call.env.unify(call.type("bias")[0], out)
    space = [fixed(n) for n in call.shape[2:]]
    call.sums(x[1])
    call.contracts(
        x[0], x[1], weight[1], *(fixed(size(d)) for d in x[2:]), *(fixed(size(k)) for k in weight[2:])
    )
    return (x[0], call.env.normal(out), *space)


@rule("aten.convolution")
def core_convolution(call: Call) -> TensorType:
    """The core operator that composites decompose to: the plain form only."""
    if call["transposed"]:
        raise Unsupported("a transposed core convolution")
    return convolution(call)


@rule("aten.scaled_dot_product_attention")
def attention(call: Call) -> TensorType:
    """``q [..., L, D], k [..., S, D], v [..., S, V] -> [..., L, V]``.

    Grouped queries repeat k and v heads.
    """
    q, k, v = call.type("query"), call.type("key"), call.type("value")
    lead = _grouped_heads(call, q, k, v) if call["enable_gqa"] else broadcast(call, [q[:-2], k[:-2], v[:-2]])
    call.env.unify(q[-1], k[-1])
    call.env.unify(k[-2], v[-2])
    if call.has("attn_mask"):
        broadcast(call, [(*lead, q[-2], k[-2]), call.type("attn_mask")])
    if call["scale"] is None:  # the default is 1/sqrt of the *active* head dim: pin it to the full one
        call.rewrite(scale=size(q[-1]) ** -0.5, when=[q[-1]])
    call.normalizes([k[-2]], "attention's softmax")
    call.sums(q[-1])
    call.contracts(*lead, q[-2], k[-2], q[-1])
    call.contracts(*lead, q[-2], k[-2], v[-1])
    return (*lead, q[-2], v[-1])


def _grouped_heads(call: Call, q: TensorType, k: TensorType, v: TensorType) -> TensorType:
    shared = call.env.unify(k[-3], v[-3])
    try:
        group, _ = call.env.split(q[-3], size(shared))
        call.env.align(group, shared)
    except Misaligned as error:
        call.freeze(q[-3], f"query heads do not align with key heads: {error}")
        call.freeze(shared, f"query heads do not align with key heads: {error}")
    return (*broadcast(call, [q[:-3], k[:-3], v[:-3]]), call.env.normal(q[-3]))
