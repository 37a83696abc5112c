"""Putting bases under a weight: every layer that reads it gets a kernel per row.

y = conv2d(x, W0, b)   ->   y = basis_conv2d(x, synthesize(W0, D, decision), b)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from dyncompile.analysis.dims.algebra import BATCH
from dyncompile.analysis.dims.call import Type, bind
from dyncompile.analysis.flow import op_name
from dyncompile.plan import Synthesized
from dyncompile.resize import leading_symbol, narrowing
from dyncompile.runtime import synthesis

_FORMS = {
    "conv2d": (synthesis.basis_conv2d, ("stride", "padding", "dilation", "groups")),
    "linear": (synthesis.basis_linear, ()),
}
"""Operator -> the layer with a kernel per row, and what else it takes."""


def reason_against_mixing(graph: fx.Graph, name: str, types: Mapping[str, Type]) -> str | None:
    """Why a weight cannot be put together per sample; None where it can."""
    readers = weight_readers(graph, name)
    if not readers:
        return "nothing reads it"
    for node in readers:
        if op_name(node) not in _FORMS or node not in layers_of(graph, name):
            return f"`{node}` ({op_name(node)}) reads it, which is neither a 2-d convolution nor linear"
        x = bind(node)["input"]
        dims = types.get(x.name)
        if not isinstance(dims, tuple) or dims[0][:1] != (BATCH,):
            return f"`{x}`, which it is applied to, has no samples along its first axis"
        if op_name(node) == "conv2d" and dims[0] != (BATCH,):
            return f"`{x}`, which it is applied to, has several positions per sample in its first axis"
    return None


def weight_readers(graph: fx.Graph, name: str) -> list[fx.Node]:
    """What reads a tensor of the state, narrowed or not."""
    todo = [node for node in graph.nodes if node.op == "get_attr" and node.target == name]
    found: list[fx.Node] = []
    while todo:
        for user in todo.pop().users:
            (todo if op_name(user) in ("prefix", "take") else found).append(user)
    return [node for node in dict.fromkeys(found) if op_name(node) != "positions"]


def layers_of(graph: fx.Graph, name: str) -> list[fx.Node]:
    """Those that have it for their weight."""
    return [
        node
        for node in weight_readers(graph, name)
        if op_name(node) in _FORMS and _source(bind(node)["weight"]) == name and _plain(node, name)
    ]


def _plain(node: fx.Node, name: str) -> bool:
    """Whether a layer reads a tensor as its weight alone."""
    given = bind(node)
    return all(_source(given[other]) != name for other in ("input", "bias"))


def _source(value: object) -> str:
    """The name of the state that a value is, narrowed or not; empty for anything else."""
    if not isinstance(value, fx.Node):
        return ""
    whole = list(narrowing(value))[-1]
    return str(whole.target) if whole.op == "get_attr" else ""


def mix_weight(
    graph: fx.Graph,
    name: str,
    bases: str,
    decision: fx.Node,
    one: Synthesized,
    tensors: Mapping[str, Tensor],
) -> None:
    """Give all layers of weight `name` the kernels that a decision mixes from the state `bases`."""
    like = next(node for node in graph.nodes if leading_symbol(node) is not None).meta["val"]
    for node in layers_of(graph, name):
        given = bind(node)
        with graph.inserting_before(node):
            read = graph.get_attr(bases)
            read.meta["val"] = tensors[bases]
            kernels = graph.call_function(
                synthesis.synthesize, (given["weight"], read, decision, one.start, one.step)
            )
        kernels.meta["val"] = like.new_empty(
            (like.shape[0], *tensors[name].shape), dtype=torch.get_default_dtype()
        )
        node.target, others = _FORMS[op_name(node)]
        node.args = (given["input"], kernels, given["bias"], *(given[other] for other in others))
        node.kwargs = {}
