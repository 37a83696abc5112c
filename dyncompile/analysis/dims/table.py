"""The table of rules, keyed by operator overload."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from dyncompile.analysis.dims.call import Rule
from dyncompile.torchlib import is_operator

_RULES: dict[str, Rule] = {}


R = TypeVar("R", bound=Rule)


def rule(*overloads: str) -> Callable[[R], R]:
    """Register a rule for overloads such as ``"aten.linear.default"``.

    ``"aten.view"`` means all of an operator.
    """

    def register(function: R) -> R:
        for overload in overloads:
            if overload in _RULES:
                raise ValueError(f"two rules for {overload}")
            _RULES[overload] = function
        return function

    return register


def find_rule(target: Any) -> Rule | None:
    """The rule of an operator; an in-place variant shares its functional twin's rule."""
    if not is_operator(target):
        return _RULES.get(getattr(target, "__name__", ""))
    name = str(target)
    packet, _, overload = name.rpartition(".")
    functional = packet.rstrip("_") if not packet.endswith("__") else packet
    for key in (name, packet, f"{functional}.{overload}", functional):
        if key in _RULES:
            return _RULES[key]
    return _RULES["pointwise"] if torch.Tag.pointwise in target.tags else None
