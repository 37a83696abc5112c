"""Inputs to time a model with: of the captured form, at any batch size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dyncompile.deploy.exports import samples
from dyncompile.precision import present_dtypes
from dyncompile.program import Program
from dyncompile.runtime.model import DynamicModel
from dyncompile.signature import Signature
from dyncompile.state import state_tensors


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

    Floating inputs have the dtype that `.to()` gave state of theirs since capture.
    """
    dtypes = present_dtypes(program.captured, state_tensors(program.state))
    flat = samples.random_inputs(program.signature, rows, dtypes)
    return [value.to(device) if isinstance(value, Tensor) else value for value in flat]


def tensors_by_name(signature: Signature, flat: Sequence[Any]) -> dict[str, Any]:
    """The arguments that a specialized network takes: those that hold tensors."""
    return {
        name: value
        for name, value in signature.named(flat).items()
        if any(isinstance(one, Tensor) for one in pytree.tree_leaves(value))
    }
