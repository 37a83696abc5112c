"""What only the running forward knows about dtypes, kept for after the trace.

At the traced dtype a conversion can be the identity. It then returns the very tensor that it was given, and
the tracer takes every later use of `x` for a use of ``x.float()``: a residual stream that a norm has looked
at in float32 would stay float32 in a model that is moved to bfloat16. So conversions are called on an alias,
which gives their results an identity of their own; `clean_graph` drops the aliases.

And a graph records ``x.to(q.dtype)`` and ``x.float()`` as the same operator. So calls that say a dtype are
noted with their source text, at the innermost line of the user's code, which `literals` reads.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.fx.traceback import annotate, preserve_node_meta
from torch.overrides import TorchFunctionMode

CALL = "dyncompile.call"
"""Where the text of a call lies in a node's metadata under ``custom``."""

_CONVERSIONS = frozenset(
    (Tensor.to, Tensor.type, Tensor.type_as, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16)
)


@contextmanager
def observed_dtypes() -> Generator[None]:
    """A context to trace in: conversions are told apart from what they convert, and noted."""
    with preserve_node_meta(), _ObservedDtypes():
        yield


class _ObservedDtypes(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func not in _CONVERSIONS and given.get("dtype") is None:
            return func(*args, **given)
        with annotate({CALL: _calling_text(sys._getframe(1))}):  # pyright: ignore
            if func in _CONVERSIONS:
                args = (torch.ops.aten.alias.default(args[0]), *args[1:])
            return func(*args, **given)


def _calling_text(frame: FrameType | None) -> str:
    """The source text of the call that the user's innermost frame is at; empty where there is no source."""
    while frame is not None and "/torch/" in frame.f_code.co_filename:
        frame = frame.f_back
    if frame is None:
        return ""
    positions = list(frame.f_code.co_positions())[frame.f_lasti // 2]
    first, last, start, end = (n or 0 for n in positions)
    lines = [linecache.getline(frame.f_code.co_filename, n).encode() for n in range(first, last + 1)]
    if not any(lines):
        return ""
    lines[-1] = lines[-1][:end]
    lines[0] = lines[0][start:]
    return b"".join(lines).decode()
