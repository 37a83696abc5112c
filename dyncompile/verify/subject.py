"""What the checks look at."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dyncompile.capture import capture
from dyncompile.program import Program, Route
from dyncompile.runtime.model import DynamicModel
from dyncompile.signature import bind_call
from dyncompile.state import Dtypes, cast_state, state_tensors
from dyncompile.verify.compare import (
    with_rows,
)


@dataclass(frozen=True)
class Subject:
    """What the checks look at.

    Attributes:
        dyn: the dynamic model, a copy.
        reference: its source, with the same weights.
        args, kwargs: the example call.
        routes: of one row each.
        source: the reference captured anew before it has run, since models may keep what they compute for a
            size; and the fingerprint before anything was done with it.
    """

    dyn: DynamicModel
    reference: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    routes: tuple[Route, ...]
    source: tuple[Program, str]

    def rows(self, size: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The example call with `size` rows, repeated or cut."""
        signature = self.dyn.program.signature
        flat = signature.flatten(self.args, self.kwargs)
        cut = [
            with_rows(v, size) if leaf.batched else v for leaf, v in zip(signature.leaves, flat, strict=True)
        ]
        return signature.call(cut)


def captured_anew(
    dyn: DynamicModel, reference: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Program, str]:
    """The program of a model's source, in the types that the model was captured in; and its fingerprint."""
    signature = dyn.program.signature
    flat = signature.flatten(args, kwargs)
    types = [leaf.dtype for leaf in signature.leaves]
    before = [v.to(t) if isinstance(v, Tensor) else v for v, t in zip(flat, types, strict=True)]
    program = capture(_as_captured(reference, dyn.program.captured), *signature.call(before))
    return program, program.fingerprint


def _as_captured(module: nn.Module, dtypes: Dtypes) -> nn.Module:
    """A module whose state has the given types, by name; a copy where it has others."""
    if all(t.dtype is dtypes.get(name, t.dtype) for name, t in state_tensors(module).items()):
        return module
    own = copy.deepcopy(module)
    cast_state(own, dtypes)
    return own


def tensor_arguments(subject: Subject, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments of a call that a specialized network takes: those that hold a tensor."""
    named = bind_call(subject.dyn.program.signature.forward, args, kwargs)
    return [v for v in named.values() if any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(v))]
