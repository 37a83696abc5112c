"""Keep ``x.float()`` apart from ``x`` while a model is traced.

At the traced dtype a conversion can be the identity. It then returns the very tensor that it was given, and
the tracer takes every later use of `x` for a use of the conversion: a residual stream that a norm has looked
at in float32 would stay float32 in a model that is moved to bfloat16. Converting an alias gives the result an
identity of its own; `clean_graph` drops the aliases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_CONVERSIONS = frozenset(
    (Tensor.to, Tensor.type, Tensor.type_as, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16)
)


class DistinctConversions(TorchFunctionMode):
    """While active, no dtype conversion returns the tensor that it was called on."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """`func`, on an alias of its first argument where it converts."""
        if func in _CONVERSIONS:
            args = (torch.ops.aten.alias.default(args[0]), *args[1:])
        return func(*args, **(kwargs or {}))
