"""Device and dtype literals that a trace bakes in, made to follow the model's own device and dtype.

A trace records ``x.to(q.dtype)`` and ``x.float()`` as the same ``aten.to.dtype(x, float32)``; only the user's
source line tells them apart. Explicit dtypes stay, those taken from a tensor or a variable follow.
"""

from __future__ import annotations

import builtins
import linecache
import re
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, fx, nn

from dyncompile.program import source_line
from dyncompile.state import state_tensors

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_CONVERSION = re.compile(
    r"\.(float|double|half|bfloat16)\(\)|\.(?:to|type)\(((?:[^()]|\([^()]*\))*)\)|dtype=([\w.]+)"
)
_EXPLICIT = re.compile(r"torch\.(float|double|half|bfloat16)\d*\b")


def follow_device_and_dtype(graph: fx.Graph, state: nn.Module) -> None:
    """Replace baked devices by the device of the first input, and inherited dtypes by the model's dtype."""
    anchor = _Anchor(graph, state)
    seen: dict[str, int] = defaultdict(int)
    for node in list(graph.nodes):
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            continue
        names = [argument.name for argument in schema.arguments]
        node.args = tuple(_replaced(node, names[i], a, anchor, seen) for i, a in enumerate(node.args))
        node.kwargs = {key: _replaced(node, key, a, anchor, seen) for key, a in node.kwargs.items()}
    graph.lint()


class _Anchor:
    """Nodes that hold the device of the first tensor input and the parameters' dtype, made on demand."""

    def __init__(self, graph: fx.Graph, state: nn.Module) -> None:
        self._graph = graph
        self._nodes: dict[str, fx.Node] = {}
        self._inputs = [n for n in graph.nodes if n.op == "placeholder"]
        floating = {name: t.dtype for name, t in state_tensors(state).items() if t.dtype in _FLOATS}
        self.dtype = next(iter(floating.values()), None)
        self._carriers = set(floating)

    def device(self) -> fx.Node | None:
        tensor = next((n for n in self._inputs if isinstance(n.meta.get("val"), Tensor)), None)
        return self._attribute("device", tensor)

    def model_dtype(self) -> fx.Node | None:
        carrier = next(
            (n for n in self._graph.nodes if n.op == "get_attr" and n.target in self._carriers), None
        )
        return self._attribute("dtype", carrier)

    def _attribute(self, name: str, owner: fx.Node | None) -> fx.Node | None:
        """A `getattr` node right after the inputs and the carrier, before anything can use it."""
        if name not in self._nodes and owner is not None:
            if owner.op == "get_attr":
                self._inputs[-1].append(owner)
            with self._graph.inserting_after(owner if owner.op == "get_attr" else self._inputs[-1]):
                new = self._graph.call_function(builtins.getattr, (owner, name))
            new.meta["val"] = getattr(owner.meta["val"], name)
            self._nodes[name] = new
        return self._nodes.get(name)


def _replaced(node: fx.Node, name: str, value: Any, anchor: _Anchor, seen: dict[str, int]) -> Any:
    if isinstance(value, torch.device):
        return anchor.device() or value
    if name == "dtype" and value is anchor.dtype and value is not None and _inherits(node, seen):
        return anchor.model_dtype() or value
    return value


def _inherits(node: fx.Node, seen: dict[str, int]) -> bool:
    """Whether the user's line takes this dtype from somewhere instead of naming it."""
    line = source_line(node)
    conversions = [match for match in _CONVERSION.finditer(_statement(line))]
    if not conversions:
        return str(node.target).startswith("aten.to.")
    turn = seen[line]
    seen[line] += 1
    shortcut, converted, keyword = conversions[turn % len(conversions)].groups()
    return not shortcut and not _EXPLICIT.search(converted or keyword or "")


def _statement(line: str) -> str:
    """The source text from a traced line on, until its brackets close (12 lines at most)."""
    location, _, code = line.partition(": ")
    file, _, number = location.rpartition(":")
    text = code
    for offset in range(1, 12):
        if text.count("(") <= text.count(")") or not number.isdigit():
            break
        text += linecache.getline(file, int(number) + offset)
    return text
