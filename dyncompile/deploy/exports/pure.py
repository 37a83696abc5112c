"""Graphs without writes: what an operator writes in place, another computes anew."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from dyncompile.analysis.flow import Flow
from dyncompile.program import copy_graph
from dyncompile.torchlib import is_operator, schema_of


def without_writes(source: fx.Graph) -> fx.Graph:
    """A copy in which operators that write all of a tensor give a new one, which later readers read.

    Writes into a part of a tensor stay as they are.
    """
    graph = copy_graph(source)
    flow = Flow.of(graph)
    readers: dict[fx.Node, list[tuple[fx.Node, fx.Node]]] = {}
    for reader, written in flow.writers.items():
        for operand, writer in written.items():
            readers.setdefault(writer, []).append((reader, operand))
    for node in graph.nodes:
        twin = _twin(node)
        if twin is not None and all(operand is node.args[0] for _, operand in readers.get(node, ())):
            node.target = twin
            for reader, operand in readers.get(node, ()):
                reader.replace_input_with(operand, node)
    return graph


def _twin(node: fx.Node) -> Any:
    """The operator that gives what this one writes into its first argument; None for any other."""
    schema = schema_of(node.target) if is_operator(node.target) else None
    if schema is None or not schema.is_mutable or not node.target._opname.endswith("_"):  # pyright: ignore
        return None
    packet = getattr(torch.ops.aten, node.target._opname[:-1], None)  # pyright: ignore
    return getattr(packet, node.target._overloadname, None)  # pyright: ignore
