"""Device and dtype literals that a trace bakes in, made to follow the model's own device and dtype.

Explicit dtypes stay, those taken from a tensor or a variable follow: the text of the user's call, which
`conversions` notes, tells ``x.to(q.dtype)`` from ``x.float()``. Limits of the traced dtype
(``torch.finfo(x.dtype).min`` in masks) follow too.
"""

from __future__ import annotations

import ast
import builtins
from typing import Any

import torch
from torch import Tensor, fx, nn

from dyncompile.capture.conversions import CALL
from dyncompile.state import state_tensors
from dyncompile.torchlib import schema_of

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SHORTCUTS = ("float", "double", "half", "bfloat16")
_LIMITS = ("min", "max")


def follow_device_and_dtype(graph: fx.Graph, state: nn.Module) -> None:
    """Replace baked devices by the device of the first input, and inherited dtypes by the model's dtype."""
    anchor = _Anchor(graph, state)
    for node in list(graph.nodes):
        schema = schema_of(node.target)
        if schema is None:
            continue
        names = [argument.name for argument in schema.arguments]
        node.args = tuple(_replaced(node, names[i], a, anchor) for i, a in enumerate(node.args))
        node.kwargs = {key: _replaced(node, key, a, anchor) for key, a in node.kwargs.items()}
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

    def limit(self, name: str) -> fx.Node | None:
        """The smallest or largest number of the model's dtype."""
        dtype = self.model_dtype()
        if name not in self._nodes and dtype is not None:
            with self._graph.inserting_after(dtype):
                info = self._graph.call_function(torch.finfo, (dtype,))
            with self._graph.inserting_after(info):
                self._nodes[name] = self._graph.call_function(builtins.getattr, (info, name))
            self._nodes[name].meta["val"] = getattr(torch.finfo(dtype.meta["val"]), name)
        return self._nodes.get(name)

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


def _replaced(node: fx.Node, name: str, value: Any, anchor: _Anchor) -> Any:
    if isinstance(value, torch.device):
        return anchor.device() or value
    if value is None or anchor.dtype is None:
        return value
    if name == "dtype" and value is anchor.dtype and not _is_explicit(node):
        return anchor.model_dtype() or value
    if type(value) is float:
        limits = [limit for limit in _LIMITS if value == getattr(torch.finfo(anchor.dtype), limit)]
        return anchor.limit(limits[0]) if limits else value
    return value


def _is_explicit(node: fx.Node) -> bool:
    """Whether the user's call names this dtype instead of taking it from somewhere.

    Without a text, a conversion is taken to follow, and what creates a tensor is not.
    """
    text = node.meta.get(CALL)
    try:
        call = ast.parse(f"({text})", mode="eval").body if text else None
    except SyntaxError:
        call = None
    if not isinstance(call, ast.Call):
        return not str(node.target).startswith("aten.to.")
    if isinstance(call.func, ast.Attribute) and call.func.attr in _SHORTCUTS:
        return True
    arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
    return any(_names_dtype(part) for argument in arguments for part in ast.walk(argument))


def _names_dtype(part: ast.AST) -> bool:
    """Whether an expression is like ``torch.float32``."""
    return (
        isinstance(part, ast.Attribute)
        and isinstance(part.value, ast.Name)
        and isinstance(getattr(torch, part.attr, None), torch.dtype)
    )
