"""Capture a model: a deep copy of it is traced, since tracing poisons tensors that some models cache.

The source is never touched. Its structure is kept, to capture it again at other sizes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dyncompile.capture.again import Code
from dyncompile.capture.check import check_inputs, check_module, check_runs
from dyncompile.capture.export import captured
from dyncompile.collector import paused_collector
from dyncompile.errors import CaptureError
from dyncompile.program import Program
from dyncompile.signature import batch_of, bind_call, forward_signature


@paused_collector()
def capture(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None, *, whole: bool = True
) -> Program:
    """The program of `model`: both graphs, one state (a copy), the calling convention.

    Args:
        model: any eager module; it is not modified.
        args, kwargs: example inputs. The leading size of the first tensor is the batch, which stays dynamic;
            every other size is fixed to the example's.
        whole: it is a network, not a part that is inserted into one and may have no parameters.

    Raises:
        CaptureError: the model cannot be traced; names the user's source line and what to do.
    """
    check_module(model, whole=whole)
    forward = forward_signature(model)
    named = bind_call(forward, args, kwargs or {})
    check_inputs(model, pytree.tree_leaves(named))
    named = _at_least_two_rows(named)
    owned = _copied(model)
    check_runs(owned, pytree.tree_leaves(named), args, kwargs or {})
    for parameter in owned.parameters():
        parameter.grad = None
    return replace(captured(owned, named), source=Code(_skeleton(owned)))


def _skeleton(model: nn.Module) -> nn.Module:
    """A structural copy whose parameters and buffers take no memory."""
    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): _weightless(tensor) for tensor in tensors})


def _weightless(tensor: Tensor) -> Tensor:
    empty = tensor.detach().to("meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:  # attributes of any class are copied here
        raise CaptureError(
            f"the model cannot be copied: {type(error).__name__}: {error}",
            fix="make copy.deepcopy(model) work: keep no computed tensors, locks or handles as attributes",
        ) from error


def _at_least_two_rows(named: dict[str, Any]) -> dict[str, Any]:
    """Batch 1 hides the batch dimension from the trace: repeat it."""
    batch = batch_of(pytree.tree_leaves(named))
    if batch is None or batch > 1:
        return named

    def repeat(value: Any) -> Any:
        grows = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == batch
        return (
            value.new_zeros((2, *value.shape[1:]))
            if grows and batch == 0
            else torch.cat([value, value])
            if grows
            else value
        )

    return pytree.tree_map(repeat, named)
