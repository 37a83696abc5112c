"""Arguments of graph nodes as JSON values, and back.

Numbers, booleans, text and None stand for themselves; all else is an object with one key that says its kind:

    {"node": "conv2d"}  {"list": [...]}  {"dtype": "float32"}  {"float": "inf"}  ...
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import fx

from dyncompile.torchlib import items

_KINDS: Mapping[str, type] = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
}
"""Constants that are attributes of torch, by the kind that tells them apart."""


def encode(value: Any) -> Any:
    """A value of a graph as JSON. Raises ValueError where it has no such form."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [encode(entry) for entry in items(value)]}
    if isinstance(value, slice):
        ends = cast("slice[Any, Any, Any]", value)
        return {"slice": [encode(ends.start), encode(ends.stop), encode(ends.step)]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for kind, cls in _KINDS.items():
        if isinstance(value, cls):
            return {kind: str(value).removeprefix("torch.")}
    raise ValueError(f"a {type(value).__name__} cannot be stored: {str(value)[:80]}")


def decode(value: Any, node: Callable[[str], fx.Node]) -> Any:
    """The value that `encode` described. Raises ValueError, KeyError or TypeError where it is none.

    Args:
        value: from JSON.
        node: graph nodes by name.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    ((kind, content),) = value.items()
    if kind == "node":
        return node(content)
    if kind in ("list", "tuple", "slice"):
        entries = [decode(entry, node) for entry in content]
        return {"list": list, "tuple": tuple}[kind](entries) if kind != "slice" else slice(*entries)
    if kind == "float":
        return float(content)
    if kind == "device":
        return torch.device(content)
    constant = getattr(torch, content, None)
    if kind not in _KINDS or not isinstance(constant, _KINDS[kind]):
        raise ValueError(f"{kind} {content!r}")
    return constant


def first_line(error: Exception) -> str:
    """What an error that came of damage says, in short."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text[:200]}"
