"""Kernels of the eager backend: what an operator gives, from a kernel that takes less time on a CPU.

torch pools maps [B, C, H, W] on a CPU one value at a time, unless channels lie innermost: then it takes as
many channels at once as a register holds. Laying a map out anew, there and back, costs less than that saves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from dyncompile.runtime.compiled import GraphForward, bind_graph

aten = torch.ops.aten

_CHANNELS, _VALUES = 8, 2**14
"""From so many channels, and values in all, on. Measured on one x86-64 core, 0.19 to 0.67 of the time on maps
of 16 to 832 channels; with fewer of either, laying out anew takes as long as pooling."""


def max_pool2d(x: Tensor, *settings: Any, **named: Any) -> Tensor:
    """``aten.max_pool2d(x, ...)``, bit for bit and laid out as it is."""
    pays = x.device.type == "cpu" and x.is_floating_point() and x.dim() == 4
    if not (pays and x.is_contiguous() and x.shape[1] >= _CHANNELS and x.numel() >= _VALUES):
        return aten.max_pool2d.default(x, *settings, **named)
    innermost = x.contiguous(memory_format=torch.channels_last)
    return aten.max_pool2d.default(innermost, *settings, **named).contiguous()


FASTER: Mapping[Any, Callable[..., Tensor]] = {aten.max_pool2d.default: max_pool2d}
"""Operator -> what gives the same sooner."""


def bind_faster(graph: fx.Graph, name: str, tensors: Mapping[str, Tensor]) -> GraphForward:
    """A folded graph as a function that reads these very tensors; see `pieces.Backend`."""
    for node in graph.nodes:
        node.target = FASTER.get(node.target, node.target)
    return bind_graph(graph, name, tensors)
