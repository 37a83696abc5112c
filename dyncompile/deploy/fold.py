"""Partial evaluation of one graph.

What decisions, sizes and state alone determine is computed ahead of time.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from dyncompile.program import POLICY
from dyncompile.runtime import ops
from dyncompile.state import STATE_PREFIX
from dyncompile.torchlib import map_nodes

_ARITHMETIC: tuple[Callable[..., Any], ...] = (operator.mul, operator.add)


def fold(source: fx.Graph, policy: Any, tensors: Mapping[str, Tensor]) -> tuple[fx.Graph, dict[str, Tensor]]:
    """(static graph, the state that it reads by name) of a graph whose `policy` input is known.

    Narrowed tensors keep the source's name. Write-backs of statistics are dropped: a static network owns its
    own.
    """
    folder = _Folder(policy, tensors)
    for node in source.nodes:
        folder.visit(node)
    folder.graph.eliminate_dead_code()
    folder.graph.lint()
    return folder.graph, folder.state


class _Folder:
    def __init__(self, policy: Any, tensors: Mapping[str, Tensor]) -> None:
        self._policy, self._tensors = policy, tensors
        self._known: dict[fx.Node, Any] = {}
        self._names: dict[fx.Node, str] = {}
        self._static: dict[fx.Node, fx.Node] = {}
        self._last_read: fx.Node | None = None
        self.graph = fx.Graph()
        self.state: dict[str, Tensor] = {}

    def visit(self, node: fx.Node) -> None:
        if node.op == "placeholder" and node.target == POLICY:
            self._known[node] = self._policy
        elif node.op == "get_attr":
            self._known[node], self._names[node] = self._tensors[str(node.target)], str(node.target)
        elif self._is_foldable(node):
            self._evaluate(node)
        elif node.target is not ops.put:
            new = self._static[node] = self.graph.node_copy(node, self._operand)
            new.meta = dict(node.meta)
            if node.op == "placeholder":
                self._last_read = new

    def _is_foldable(self, node: fx.Node) -> bool:
        if node.target not in ops.FOLDABLE and node.target not in _ARITHMETIC:
            return False
        return all(operand in self._known for operand in node.all_input_nodes)

    def _evaluate(self, node: fx.Node) -> None:
        args, kwargs = map_nodes((node.args, dict(node.kwargs)), self._known.__getitem__)
        assert callable(node.target)
        with torch.no_grad():
            self._known[node] = node.target(*args, **kwargs)
        named = [self._names[operand] for operand in node.all_input_nodes if operand in self._names]
        if named:  # a narrowed or picked tensor goes by the name of the source's tensor
            self._names[node] = min(named, key=lambda name: name.startswith(f"{STATE_PREFIX}."))

    def _operand(self, node: fx.Node) -> Any:
        """A node's value as an argument in the static graph: a literal, or a read of (narrowed) state."""
        if node in self._static:
            return self._static[node]
        value = self._known[node]
        if not isinstance(value, Tensor):
            return value
        self._static[node] = self._read(self._names[node], node)
        self.state[self._names[node]] = value
        return self._static[node]

    def _read(self, name: str, node: fx.Node) -> fx.Node:
        """A state read after the inputs and the reads before it."""
        assert self._last_read is not None
        with self.graph.inserting_after(self._last_read):
            self._last_read = self.graph.get_attr(name)
        self._last_read.meta = {key: value for key, value in node.meta.items() if key != "val"}
        self._last_read.meta["val"] = self._known[node]
        return self._last_read
