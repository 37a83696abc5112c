"""Graphs as Python functions."""

from __future__ import annotations

import linecache
from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import fx

GraphForward = Callable[..., Sequence[Any]]
"""``forward(state, *graph inputs)`` -> flat outputs."""


def compile_graph(graph: fx.Graph, name: str) -> GraphForward:
    """A graph as a Python function of (state, *placeholders), with source lines in tracebacks."""
    code = graph.python_code("self")
    namespace: dict[str, Any] = dict(code.globals)
    filename = f"<dyncompile {name} graph {id(graph):x}>"
    linecache.cache[filename] = (len(code.src), None, code.src.splitlines(keepends=True), filename)
    exec(compile(code.src, filename, "exec"), namespace)
    return cast(GraphForward, namespace["forward"])
