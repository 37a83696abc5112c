"""Dtypes of values as they are now.

``.to(dtype)`` moves a model's state; what its graphs say of their values is as it was at capture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, fx


def present_dtypes(graph: fx.Graph, tensors: Mapping[str, Tensor]) -> dict[torch.dtype, torch.dtype]:
    """What most state that had a floating dtype at capture has now, by that dtype.

    Args:
        graph: any graph over the state; its reads say what was captured.
        tensors: the state by name.
    """
    moves = Counter[tuple[torch.dtype, torch.dtype]]()
    for node in graph.nodes:
        captured = node.meta.get("val") if node.op == "get_attr" else None
        if isinstance(captured, Tensor) and captured.is_floating_point():
            moves[captured.dtype, tensors[str(node.target)].dtype] += 1
    return dict(pair for pair, _ in reversed(moves.most_common()))


@contextmanager
def no_autocast(tensors: Iterable[Tensor]) -> Generator[None]:
    """No dtype is chosen for operators on the devices of `tensors`."""
    with ExitStack() as stack:
        for device in {tensor.device.type for tensor in tensors} - {"meta"}:
            stack.enter_context(torch.autocast(device, enabled=False))
        yield
