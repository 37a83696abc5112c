"""Dtypes of values as they are now.

``.to(dtype)`` moves a model's state; what its graphs say of their values is as it was at capture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from dyncompile.state import Dtypes


def present_dtypes(captured: Dtypes, tensors: Mapping[str, Tensor]) -> dict[torch.dtype, torch.dtype]:
    """What most state that had a floating dtype at capture has now, by that dtype.

    Args:
        captured: see `Program.captured`.
        tensors: state by name, all of it or a part.
    """
    moves = Counter((dtype, tensors[name].dtype) for name, dtype in captured.items() if name in tensors)
    return dict(pair for pair, _ in reversed(moves.most_common()))


@contextmanager
def no_autocast(tensors: Iterable[Tensor]) -> Generator[None]:
    """No dtype is chosen for operators on the devices of `tensors`."""
    with ExitStack() as stack:
        for device in {tensor.device.type for tensor in tensors} - {"meta"}:
            stack.enter_context(torch.autocast(device, enabled=False))
        yield
