"""Work in front of the first branch, in blocks of rows that have room in a cache.

    rows of a block = BLOCK per thread / bytes of the widest value of one row

What a network computes first is wide and has few weights. Where a large batch runs it at once, every operator
writes more than a cache holds, into memory that allocators take from the system at each call and give back:
touching the new pages can take longer than the arithmetic. Static networks of the batch's parts would not pay
for that. Branches part the batch anyway, so what precedes them is parted as well, and put together behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from dyncompile.analysis.dims.call import Type, flat_types
from dyncompile.analysis.flow import carries_tensor
from dyncompile.runtime.rows import batch_axis, elements_per_row, join_rows, rows_between, rows_in
from dyncompile.state import state_tensors
from dyncompile.torchlib import items

BLOCK = 4 * 2**20
"""Bytes: what the widest value of a block takes at most, and the weights that every block reads anew.

Measured with ResNet-18 at 64 pixels, batch 128, on one x86-64 core: 2 and 4 MiB are alike, 8 MiB is slower.
"""


def widest_row(
    nodes: Sequence[fx.Node], inputs: Collection[fx.Node], types: Mapping[str, Type], state: nn.Module
) -> int:
    """Bytes per row of the widest value of some nodes; 0 where these had better run for all rows at once.

    That is where their weights are larger than a block, where something has no row of its own per sample, or
    where one of their `inputs` has its rows behind something else, and part of them is no view.
    """
    computed = [node for node in nodes if carries_tensor(node)]
    found = [(node, types.get(node.name)) for node in computed]
    if any(batch_axis(one) is None for _, kind in found for one in flat_types(kind) or [None]):
        return 0
    given = [one for node in inputs for one in flat_types(types.get(node.name))]
    if any(rows_in(one) is not None and batch_axis(one) is None for one in given):
        return 0
    if _weights(computed, inputs, state) > BLOCK:
        return 0
    return max((elements_per_row(kind) * _element(node) for node, kind in found), default=0)


def _weights(nodes: Sequence[fx.Node], inputs: Collection[fx.Node], state: nn.Module) -> int:
    """Bytes of the state that nodes read beside their inputs, straight or through what narrows it."""
    tensors, seen, todo = state_tensors(state), set(inputs), [*nodes]
    own = set(nodes)
    while todo:
        for source in todo.pop().all_input_nodes:
            if source not in seen and source not in own and source.op in ("get_attr", "call_function"):
                seen.add(source)
                todo.append(source)
    names = {str(node.target) for node in seen if node.op == "get_attr"}
    return sum(tensors[name].nbytes for name in names)


def _element(node: fx.Node) -> int:
    found: Any = node.meta["val"]
    values: list[Tensor] = items(found) if isinstance(found, list | tuple) else [found]
    return max(one.element_size() for one in values)


def rows_at_once(row_bytes: int, values: Sequence[Any]) -> int:
    """How many rows of the inputs `values` had better run at once; 0 where it does not matter.

    Accelerators have memory of their own and want large batches, and gradients need all values in any case.
    """
    on_cpu = all(value.device.type == "cpu" for value in values if isinstance(value, Tensor))
    if not row_bytes or torch.is_grad_enabled() or not on_cpu:
        return 0
    return max(1, BLOCK * torch.get_num_threads() // row_bytes)


def run_in_blocks(
    run: Callable[[Tensor, Sequence[Any]], Sequence[Any]],
    values: Sequence[Any],
    types: tuple[Sequence[Type], Sequence[Type]],
    count: int,
    most: int,
) -> list[Any]:
    """``run(positions [n], values of these rows)`` for all `count` rows, at most `most` at a time.

    `types` are those of `values` and of what `run` gives, which is put together in the order of the rows.
    """
    takes, gives = types
    parts = [
        run(
            torch.arange(start, end),
            [rows_between(x, one, start, end, count) for x, one in zip(values, takes, strict=True)],
        )
        for start, end in _bounds(count, -(-count // most))
    ]
    return [join_rows(list(same), one) for same, one in zip(zip(*parts, strict=True), gives, strict=True)]


def _bounds(count: int, blocks: int) -> Iterator[tuple[int, int]]:
    """Starts and ends of blocks of almost the same size."""
    return ((count * i // blocks, count * (i + 1) // blocks) for i in range(blocks))
