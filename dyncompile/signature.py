"""How a user's call maps to the flat inputs of a graph, and the flat outputs back to the user's structure."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dyncompile.errors import InputError
from dyncompile.torchlib import is_several


@dataclass(frozen=True, slots=True)
class Leaf:
    """One flat input: a tensor (its shape with None for the batch, its dtype) or a constant."""

    path: str
    shape: tuple[int | None, ...] | None
    dtype: torch.dtype | None
    constant: Any = None

    @property
    def batched(self) -> bool:
        """Whether axis 0 is the batch."""
        return bool(self.shape) and self.shape[0] is None

    def problem(self, value: Any) -> str | None:
        """Why `value` does not fit, None if it does.

        Floating dtypes may differ: autocast and `.to()` change them.
        """
        if self.shape is None:
            same = type(value) is type(self.constant) and value == self.constant
            return None if same else f"{self.path} was captured as {self.constant!r}, got {value!r}"
        if not isinstance(value, Tensor):
            return f"{self.path} must be a tensor, got {type(value).__name__}"
        wanted = "x".join("B" if n is None else str(n) for n in self.shape)
        fits = len(value.shape) == len(self.shape) and all(
            n is None or n == m for n, m in zip(self.shape, value.shape, strict=True)
        )
        if not fits:
            return f"{self.path} must have shape {wanted}, got {'x'.join(map(str, value.shape))}"
        if self.dtype is not None and value.dtype.is_floating_point != self.dtype.is_floating_point:
            return f"{self.path} must be {self.dtype}, got {value.dtype}"
        return None


@dataclass(frozen=True)
class Signature:
    """Calling convention of a captured model.

    Attributes:
        forward: the source's `forward`, as a signature.
        structure: pytree of the bound arguments.
        leaves: one entry per graph input.
        out_structure: pytree of the source's output in evaluation mode.
        train_structure: that in training mode, which may have auxiliary outputs; None where it is the same.
    """

    forward: inspect.Signature
    structure: pytree.TreeSpec
    leaves: tuple[Leaf, ...]
    out_structure: pytree.TreeSpec
    train_structure: pytree.TreeSpec | None = None

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The flat graph inputs of a call; raises InputError that names every misfit."""
        flat, structure = pytree.tree_flatten(bind_call(self.forward, args, kwargs, self.captured_names))
        if structure != self.structure:
            raise InputError(
                f"the call does not have the structure that was captured: {self.captured_names}",
                fix="call with the same arguments, or dynamize again with example_inputs of this form",
            )
        problems = [p for leaf, value in zip(self.leaves, flat, strict=True) if (p := leaf.problem(value))]
        if problems:
            raise InputError.of_all("inputs do not fit the captured model", problems)
        return flat

    def named(self, flat: Sequence[Any]) -> dict[str, Any]:
        """The arguments of a call by name, from flat graph inputs."""
        return dict(pytree.tree_unflatten(list(flat), self.structure))

    def call(self, flat: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The positional and keyword arguments of a call, from flat graph inputs."""
        bound = self.forward.bind_partial()
        bound.arguments.update(self.named(flat))
        return bound.args, bound.kwargs

    def unflatten(self, outputs: Sequence[Any], *, training: bool = False) -> Any:
        """The user's output structure around flat outputs of the graph of a mode."""
        other = self.train_structure if training else None
        return pytree.tree_unflatten(list(outputs), self.out_structure if other is None else other)

    @property
    def captured_names(self) -> tuple[str, ...]:
        """Names of the arguments that were given at capture."""
        return tuple(self.structure.context)

    def rows(self, flat: Sequence[Any]) -> int:
        """Batch size of flat inputs."""
        sizes = {
            leaf.path: value.shape[0] for leaf, value in zip(self.leaves, flat, strict=True) if leaf.batched
        }
        if len(set(sizes.values())) > 1:
            raise InputError(f"inputs disagree on the batch size: {sizes}")
        return next(iter(sizes.values()), 1)


def bind_call(
    forward: inspect.Signature,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    captured: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Arguments by parameter name in the order of `forward`; those left at their default are not listed.

    With `captured`, an argument outside of it that is given as None or as its default is dropped.
    """
    try:
        bound = forward.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(
            f"the call does not fit forward{forward}: {error}",
            fix="call with the arguments of the source's forward",
        ) from None
    named = dict(bound.arguments)
    for name, value in list(named.items()):
        parameter = forward.parameters[name]
        if captured is not None and name not in captured and (value is None or value is parameter.default):
            del named[name]
        elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named[name] = dict(sorted(value.items()))
    return named


def forward_signature(model: nn.Module) -> inspect.Signature:
    """The signature of `forward` without annotations and with literal defaults, so that it can be copied."""
    raw = inspect.signature(model.forward)
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in raw.parameters.values()]
    return raw.replace(parameters=plain, return_annotation=inspect.Signature.empty)


def field_names(spec: pytree.TreeSpec) -> list[str] | None:
    """Names of the entries of a dict, or of a class with named fields (as in transformers); else None."""
    context: Any = spec.context
    names: Any = context if is_several(context) else getattr(context, "_fields", None)
    entries = spec.children()
    if names is None or len(names) != len(entries) or not all(isinstance(name, str) for name in names):
        return None
    return list(names)


def batch_of(flat: Sequence[Any]) -> int | None:
    """Leading size of the first tensor that has axes, None if there is none."""
    return next((v.shape[0] for v in flat if isinstance(v, Tensor) and v.dim() > 0), None)


def make_leaf(path: str, value: Any, batch: int | None) -> Leaf:
    """The description of one example input; a leading size equal to `batch` is the batch."""
    if not isinstance(value, Tensor):
        return Leaf(path, None, None, value)
    shape: list[int | None] = list(value.shape)
    if shape and shape[0] == batch:
        shape[0] = None
    return Leaf(path, tuple(shape), value.dtype)
