"""Where samples meet: operators that let a row's values depend on the other rows of its batch.

    x.mean(0), w @ x, x[0]      the batch is in an operand and not in the result
    x @ x.T                     it is there once more than before
    x.softmax(0), x.flip(0)     it is the axis that the operator works along

Rows that are decided differently run apart from each other, so there a route changes whom a row meets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import fx

from dyncompile.analysis.dims.algebra import BATCH, is_batched, leaves
from dyncompile.analysis.dims.call import TensorType, Type, bind, flat_types
from dyncompile.analysis.flow import Flow, op_name
from dyncompile.torchlib import items, schema_of

_ALONG = frozenset(
    (
        *("softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "cumprod", "logcumsumexp"),
        *("cummax", "cummin", "flip", "roll", "sort", "argsort", "topk", "diff"),
    )
)


def find_meetings(flow: Flow, types: Mapping[str, Type]) -> tuple[str, ...]:
    """Names of the nodes at which samples meet, in order."""
    return tuple(node.name for node in flow.sources if node not in flow.dead and _meet(flow, node, types))


def _meet(flow: Flow, node: fx.Node, types: Mapping[str, Type]) -> bool:
    read = [dims for source in flow.sources[node] for dims in flat_types(types.get(source.name))]
    given = flat_types(types.get(node.name))
    before = max(map(_rows, read), default=0)
    if not before or not given or node.op != "call_function":
        return False
    after = max(map(_rows, given))
    return after == 0 or after > before or _works_along(node, read[0])


def _rows(dims: TensorType) -> int:
    """How often the batch is a factor of a type."""
    return sum(factor == BATCH for dim in dims for factor in leaves(dim))


def _works_along(node: fx.Node, dims: TensorType) -> bool:
    """Whether an operator mixes positions of the axis that holds the samples."""
    if schema_of(node.target) is None:
        return False
    arguments = bind(node)
    if node.target is torch.ops.aten.batch_norm.default:
        return bool(arguments["training"])
    return op_name(node) in _ALONG and any(is_batched(dims[axis]) for axis in _axes(arguments, len(dims)))


def _axes(arguments: Mapping[str, object], rank: int) -> Iterable[int]:
    given = next((arguments[name] for name in ("dim", "dims") if name in arguments), None)
    return [axis for axis in items(given) if isinstance(axis, int) and -rank <= axis < rank]
