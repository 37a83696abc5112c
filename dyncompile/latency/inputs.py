"""Inputs to time a model with: of the captured form, at any batch size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dyncompile.program import Program
from dyncompile.runtime.model import DynamicModel
from dyncompile.signature import Leaf, Signature


def device_of(dyn: DynamicModel) -> torch.device:
    """Where the state lies."""
    return next((value.device for value in dyn.state_dict().values()), torch.device("cpu"))


def given_inputs(dyn: DynamicModel, inputs: Any) -> list[Any]:
    """Flat inputs of a tensor, a tuple of positional or a dict of named arguments. Raises InputError."""
    signature = dyn.program.signature
    if isinstance(inputs, dict):
        return signature.flatten((), cast("dict[str, Any]", inputs))
    return signature.flatten(cast("tuple[Any, ...]", inputs) if isinstance(inputs, tuple) else (inputs,), {})


def random_inputs(program: Program, rows: int, device: torch.device) -> list[Any]:
    """Flat inputs of `rows` rows: normal numbers, ones for what is no floating number, captured constants.

    Floating inputs have the dtype of the state, which `.to()` may have changed since capture.
    """
    floats = (p.dtype for p in program.state.parameters() if p.is_floating_point())
    dtype = next(floats, torch.get_default_dtype())
    generator = torch.Generator().manual_seed(0)
    return [_filled(leaf, rows, device, dtype, generator) for leaf in program.signature.leaves]


def _filled(
    leaf: Leaf, rows: int, device: torch.device, dtype: torch.dtype, generator: torch.Generator
) -> Any:
    if leaf.shape is None:
        return leaf.constant
    shape = [rows if size is None else size for size in leaf.shape]
    if leaf.dtype is None or leaf.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(device, dtype)
    return torch.ones(shape, dtype=leaf.dtype, device=device)


def tensors_by_name(signature: Signature, flat: Sequence[Any]) -> dict[str, Any]:
    """The arguments that a specialized network takes: those that hold tensors."""
    named: dict[str, Any] = pytree.tree_unflatten(list(flat), signature.structure)
    return {
        name: value
        for name, value in named.items()
        if any(isinstance(one, Tensor) for one in pytree.tree_leaves(value))
    }
