"""What a stored graph may call: a closed list.

A name in a file never reaches `getattr` on anything but torch's ATen operators, and of these only such as the
dimension types have a rule for, or that are listed here. None of them opens a file or runs code.
"""

from __future__ import annotations

import builtins
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from dyncompile.analysis.dims.table import find_rule
from dyncompile.torchlib import enter_autocast, exit_autocast, has_kernel, is_operator

_OPERATOR = re.compile(r"aten\.(\w+)\.(\w+)")

_PLAIN: Any = operator  # its functions are annotated in part
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "getitem": _PLAIN.getitem,
    "getattr": builtins.getattr,
    "add": _PLAIN.add,
    "sub": _PLAIN.sub,
    "mul": _PLAIN.mul,
    "floordiv": _PLAIN.floordiv,
    "mod": _PLAIN.mod,
    "neg": _PLAIN.neg,
    "finfo": torch.finfo,
    "enter_autocast": enter_autocast,
    "exit_autocast": exit_autocast,
}
"""Plain functions that capture leaves in graphs."""

_ATTRIBUTES = frozenset({"device", "dtype", "min", "max"})
"""All that `getattr` may be asked for."""

_WITHOUT_RULE = frozenset(
    {
        "aten.sym_size.int",
        "aten.detach.default",
        "aten.detach_.default",
        "aten.cross_entropy_loss.default",
        "aten.binary_cross_entropy_with_logits.default",
        "aten.mse_loss.default",
        "aten.nll_loss_nd.default",
        "aten.dot.default",
        "aten.vdot.default",
    }
)
"""Operators that are harmless and have no rule: losses of models that compute their own, and what a spectral
norm multiplies."""


def encode_target(target: Any) -> str:
    """The name of what a node calls. Raises ValueError where it is not on the list."""
    name = str(target) if is_operator(target) else _function_name(target)
    if decode_target(name) is not target:
        raise ValueError(f"operator {name} is not among those that a stored graph may call")
    return name


def decode_target(name: str) -> Callable[..., Any]:
    """What a name stands for. Raises ValueError where it is not on the list."""
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    match = _OPERATOR.fullmatch(name)
    packet = getattr(torch.ops.aten, match[1], None) if match else None
    found = getattr(packet, match[2], None) if match and packet is not None else None
    if is_operator(found) and has_kernel(found) and (name in _WITHOUT_RULE or find_rule(found) is not None):
        return found
    raise ValueError(f"operator {name!r} is not among those that a stored graph may call")


def check_call(target: Any, args: tuple[Any, ...]) -> None:
    """Refuse attributes that graphs never ask for. Raises ValueError."""
    if target is builtins.getattr and (len(args) != 2 or args[1] not in _ATTRIBUTES):
        raise ValueError(f"a stored graph asks for the attribute {args[1:]!r}")


def _function_name(target: Any) -> str:
    return next((name for name, known in _FUNCTIONS.items() if known is target), str(target))
