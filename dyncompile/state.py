"""Module trees that hold parameters and buffers under dotted names, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dyncompile.torchlib import named_modules, own_buffers, own_modules, own_parameters, transient_buffers

STATE_PREFIX = "dyn"
"""All state that capture and passes add lives under this module name; source names never change."""

CONSTANTS = f"{STATE_PREFIX}.constants"
"""Where tensors go that the source creates in `forward`; they are not saved, a capture makes them again."""

GATES = f"{STATE_PREFIX}.gates"
"""Where the parameters of decision nets live: ``dyn.gates.<choice>.<layer>.<name>``."""


BASES = "bases"
"""Where bases of mixed weights live, under ``dyn.``: ``dyn.bases.<weight>``."""

EXITS = "exits"
"""Where temperatures and thresholds of exits live, under ``dyn.``: ``dyn.exits.<choice>.threshold``."""

FOLDED = f"{STATE_PREFIX}.folded"
"""A buffer that a deployed model alone has: its state has the source's names, and other numbers."""


def adopt_state(state: nn.Module, source: nn.Module) -> None:
    """Register the source's parameters and buffers in `state`, tied names included, in the source's order.

    A module of several names stays one: what `.to()` replaces under one name is replaced under the others.
    """
    first: dict[int, str] = {}
    for prefix, module in named_modules(source):
        known = first.setdefault(id(module), prefix)
        if known != prefix:
            _name_again(state, known, prefix)
        lead = f"{prefix}." if prefix else ""
        for name, parameter in own_parameters(module).items():
            if parameter is not None and not holds(state, lead + name):
                put_state(state, lead + name, parameter)
        for name, buffer in own_buffers(module).items():
            if buffer is not None and not holds(state, lead + name):
                put_state(state, lead + name, buffer, persistent=name not in transient_buffers(module))


def _name_again(state: nn.Module, known: str, name: str) -> None:
    """Register the module that is `known` by one name under another one too, if it holds anything."""
    path, _, leaf = name.rpartition(".")
    shared = _found(state, known)
    if shared is not None and _found(state, name) is None:
        _made(state, path).add_module(leaf, shared)


def put_state(state: nn.Module, name: str, value: Tensor, *, persistent: bool = True) -> None:
    """Register a parameter or buffer under a dotted name, creating the modules on the way."""
    path, _, leaf = name.rpartition(".")
    owner = _made(state, path)
    if isinstance(value, nn.Parameter):
        owner.register_parameter(leaf, value)
    else:
        owner.register_buffer(leaf, value, persistent=persistent)


def _made(state: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path, made where there is none; the path of `state` itself is empty."""
    owner = state
    for part in path.split(".") if path else ():
        child = own_modules(owner).get(part)
        if child is None:
            child = nn.Module()
            owner.add_module(part, child)
        owner = child
    return owner


def _found(state: nn.Module, path: str) -> nn.Module | None:
    """The module at a dotted path; None where there is none."""
    owner: nn.Module | None = state
    for part in path.split(".") if path else ():
        owner = own_modules(owner).get(part) if owner is not None else None
    return owner


def drop_state(state: nn.Module, prefix: str) -> None:
    """Take out everything under the dotted name `prefix`."""
    path, _, leaf = prefix.rpartition(".")
    owner = _found(state, path)
    if owner is not None:
        own_modules(owner).pop(leaf, None)


def holds(state: nn.Module, name: str) -> bool:
    """Whether a parameter or buffer of this dotted name is registered."""
    path, _, leaf = name.rpartition(".")
    owner = _found(state, path)
    return owner is not None and (leaf in own_parameters(owner) or leaf in own_buffers(owner))


def state_tensors(state: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, parameters first; tied names share one tensor object."""
    named: dict[str, Tensor] = dict(state.named_parameters(remove_duplicate=False))
    named.update(state.named_buffers(remove_duplicate=False))
    return named


def share_state(state: nn.Module) -> nn.Module:
    """A structural copy of a module tree that holds the same tensor objects."""
    memo = {id(t): t for t in (*state.parameters(), *state.buffers())}
    return copy.deepcopy(state, memo)


Dtypes = Mapping[str, torch.dtype]
"""Name of a parameter or buffer -> its type."""


def dtypes_of(model: nn.Module) -> Dtypes:
    """The types of all that a cast like ``model.bfloat16()`` moves."""
    return {name: tensor.dtype for name, tensor in state_tensors(model).items() if tensor.is_floating_point()}


def cast_state(model: nn.Module, dtypes: Dtypes) -> None:
    """Give state by name other types, in place: what is tied stays tied. Names of no state are left out."""
    state = state_tensors(model)
    for name in dtypes.keys() & state.keys():
        state[name].data = state[name].data.to(dtypes[name])
