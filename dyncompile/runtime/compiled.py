"""Graphs as Python functions.

Batch norms that learn make an exception for one value per channel, as a group of one row over a map of one
position gives: it has no variance (torch's operator stores NaN as the running one), so it is normalized by
the statistics that there are, and these stay.
"""

from __future__ import annotations

import linecache
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from dyncompile.analysis.dims.call import bind
from dyncompile.program import copy_graph
from dyncompile.torchlib import autocast_kept, enter_autocast, own_buffers, own_modules, own_parameters

GraphForward = Callable[..., Sequence[Any]]
"""``forward(*graph inputs)`` -> flat outputs."""

Compiler = Callable[[fx.Graph, str, nn.Module], GraphForward]
"""``compile(graph, name, state)``: how the graphs of a model become functions, see `compile_graph`."""

_Slot = tuple[dict[str, Any], str]
"""Where a tensor is registered: a module's live dictionary, and its key there."""

_STATE = "dyn_state_tensors"
"""A name that no argument of the source has."""

_BATCH_NORM = torch.ops.aten.batch_norm.default


def compile_graph(graph: fx.Graph, name: str, state: nn.Module) -> GraphForward:
    """A graph as a function that reads `state` as it is at each call, with source lines in tracebacks.

    State is looked up in the modules' dictionaries: a dotted path of attributes would take longer than many
    an operator.
    """
    function, names = _function(graph, name)
    slots = [_slot(state, one) for one in names]

    def forward(*inputs: Any) -> Sequence[Any]:
        return function(None, [registered[key] for registered, key in slots], *inputs)

    return _leaving_no_mode(forward) if any(n.target is enter_autocast for n in graph.nodes) else forward


def _leaving_no_mode(forward: GraphForward) -> GraphForward:
    def guarded(*inputs: Any) -> Sequence[Any]:
        with autocast_kept():
            return forward(*inputs)

    return guarded


def bind_graph(graph: fx.Graph, name: str, tensors: Mapping[str, Tensor]) -> GraphForward:
    """A graph as a function that reads these very tensors, by the names of its state."""
    function, names = _function(graph, name)
    own = [tensors[one] for one in names]

    def forward(*inputs: Any) -> Sequence[Any]:
        return function(None, own, *inputs)

    return forward


def _function(graph: fx.Graph, name: str) -> tuple[GraphForward, list[str]]:
    """``(None, state, *inputs)`` -> outputs, and the names of the state in its order."""
    graph, names = _with_state_as_input(graph)
    code = graph.python_code("self")
    namespace: dict[str, Any] = dict(code.globals)
    filename = f"<dyncompile {name} graph {id(graph):x}>"
    linecache.cache[filename] = (len(code.src), None, code.src.splitlines(keepends=True), filename)
    exec(compile(code.src, filename, "exec"), namespace)
    return cast(GraphForward, namespace["forward"]), names


def _with_state_as_input(source: fx.Graph) -> tuple[fx.Graph, list[str]]:
    """A copy whose first input is the list of tensors that it reads, and their names."""
    graph = copy_graph(source)
    first = next(iter(graph.nodes))
    with graph.inserting_before(first):
        tensors = graph.placeholder(_STATE)
    slots: dict[str, int] = {}
    for node in [n for n in graph.nodes if n.op == "get_attr"]:
        at = slots.setdefault(str(node.target), len(slots))
        with graph.inserting_before(node):
            read = graph.call_function(operator.getitem, (tensors, at))
        node.replace_all_uses_with(read)
        graph.erase_node(node)
    for node in graph.nodes:
        if node.target is _BATCH_NORM and bind(node)["training"] is True:
            node.target = _learning_batch_norm
    return graph, list(slots)


def _learning_batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    training: bool,
    *rest: Any,
) -> Tensor:
    learns = mean is None or x.numel() != x.shape[1]
    return _BATCH_NORM(x, weight, bias, mean, variance, training and learns, *rest)


def _slot(state: nn.Module, name: str) -> _Slot:
    *path, leaf = name.split(".")
    owner = state
    for part in path:
        owner = cast(nn.Module, own_modules(owner)[part])
    found: dict[str, Tensor | None] = cast(Any, own_parameters(owner))
    return (found if leaf in found else cast(Any, own_buffers(owner))), leaf
