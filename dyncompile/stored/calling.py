"""How a network is called, as data: its arguments, their shapes, the structure of what it returns."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dyncompile.errors import CheckpointError
from dyncompile.signature import Leaf, Signature, field_names

CONSTANTS = (bool, int, float, str, type(None))
_Parameter = inspect.Parameter
_PARAMETER_KINDS = {str(kind.name): kind for kind in inspect._ParameterKind}  # pyright: ignore
_LARGEST = 1 << 20


def describe_inputs(signature: Signature) -> Any:
    """The captured arguments by name, with descriptions in place of values."""
    named: Any = pytree.tree_unflatten(list(signature.leaves), signature.structure)
    return {name: _describe(value) for name, value in named.items()}


def _describe(value: Any) -> dict[str, Any]:
    """One entry: the kind of value -> what it holds."""
    if isinstance(value, Leaf) and value.shape is not None:
        return {"tensor": {"shape": value.shape, "dtype": str(value.dtype).removeprefix("torch.")}}
    if isinstance(value, Leaf) and isinstance(value.constant, CONSTANTS):
        return {"constant": value.constant}
    entries: Any = value
    kind = type(entries.constant if isinstance(value, Leaf) else entries).__name__
    if kind == "dict" and all(isinstance(key, str) for key in entries):
        return {kind: {key: _describe(entry) for key, entry in entries.items()}}
    if kind in ("list", "tuple"):
        return {kind: [_describe(entry) for entry in entries]}
    raise CheckpointError(
        f"an argument of the model holds a {kind}, which a checkpoint cannot describe",
        fix="dynamize with tensors, plain values, lists, tuples and dicts as arguments",
    )


def example_inputs(described: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Arguments of the recorded form: zeros that take no memory. Raises CheckpointError."""

    def make(shape: Any, dtype: Any) -> Tensor:
        return _example(shape, dtype, device)

    return {name: _value(value, make) for name, value in described.items()}


def _value(described: Any, tensor: Callable[[Any, Any], Any]) -> Any:
    """A value of the recorded form; `tensor` makes what stands for a tensor."""
    try:
        ((kind, content),) = described.items()
        if kind == "dict":
            return {str(key): _value(entry, tensor) for key, entry in content.items()}
        if kind in ("list", "tuple"):
            entries = [_value(entry, tensor) for entry in content]
            return entries if kind == "list" else tuple(entries)
        if kind == "tensor":
            return tensor(content["shape"], content["dtype"])
        if kind == "constant" and isinstance(content, CONSTANTS):
            return content
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    raise CheckpointError(f"the checkpoint's description of inputs is damaged: {str(described)[:80]}")


def read_dtype(name: Any) -> torch.dtype:
    """The type of a name like "float32". Raises TypeError or ValueError where it is none."""
    kind = getattr(torch, name, None)
    if not isinstance(kind, torch.dtype):
        raise ValueError(f"dtype {name!r}")
    return kind


def _sizes(shape: Any) -> list[int]:
    sizes = [2 if n is None else n for n in shape]
    if not all(type(n) is int and 0 <= n < _LARGEST for n in sizes):
        raise ValueError(f"shape {shape}")
    return sizes


def _example(shape: Any, dtype: Any, device: torch.device) -> Tensor:
    """Zeros that take no memory, whatever the file says about their size. Raises ValueError."""
    return torch.zeros(1, dtype=read_dtype(dtype), device=device).expand(_sizes(shape))


# -- without the source -----------------------------------------------------------------------------


def describe_call(signature: Signature) -> dict[str, Any]:
    """What `restore_signature` needs besides the inputs. Raises ValueError for outputs of unknown kinds."""
    described: dict[str, Any] = {
        "forward": [
            {"name": p.name, "kind": p.kind.name, "default": _default(p)}
            for p in signature.forward.parameters.values()
        ],
        "paths": [leaf.path for leaf in signature.leaves],
        "output": _describe_structure(signature.out_structure),
    }
    if signature.train_structure is not None:
        described["train_output"] = _describe_structure(signature.train_structure)
    return described


def _default(parameter: inspect.Parameter) -> Any:
    """Absent: no default. Defaults that are no plain values become None, which callers may leave out, too."""
    if parameter.default is _Parameter.empty:
        return "absent"
    return {"constant": parameter.default if isinstance(parameter.default, CONSTANTS) else None}


def _describe_structure(spec: Any) -> Any:
    """Nested lists, tuples and dicts. Other classes with named fields (as in transformers) become dicts."""
    if spec.is_leaf():
        return None
    entries = [_describe_structure(child) for child in spec.children()]
    if spec.type in (list, tuple):
        return {spec.type.__name__: entries}
    if spec.type is type(None):
        return {"none": []}
    names = field_names(spec)
    if names is None:
        raise ValueError(f"an output of type {spec.type.__name__} cannot be stored")
    return {"dict": dict(zip(names, entries, strict=True))}


def _structure(described: Any) -> Any:
    """A value with zeros for leaves, of which pytree makes the structure."""
    if described is None:
        return 0
    ((kind, content),) = described.items()
    if kind == "none":
        return None
    if kind == "dict":
        return {str(name): _structure(entry) for name, entry in content.items()}
    return {"list": list, "tuple": tuple}[kind](_structure(entry) for entry in content)


def restore_signature(inputs: Mapping[str, Any], call: Mapping[str, Any]) -> Signature:
    """The calling convention. Raises CheckpointError, KeyError, TypeError or ValueError for damage."""
    named = {name: _value(value, _Shape) for name, value in inputs.items()}
    flat, structure = pytree.tree_flatten(named)
    leaves = [_leaf(path, value) for path, value in zip(call["paths"], flat, strict=True)]
    parameters = [_parameter(**described) for described in call["forward"]]
    outputs = (call[key] for key in ("output", "train_output") if key in call)
    structures = [pytree.tree_structure(_structure(described)) for described in outputs]
    return Signature(inspect.Signature(parameters), structure, tuple(leaves), *structures)


class _Shape:
    """Stands for a tensor input. Raises ValueError for absurd ones."""

    def __init__(self, shape: Any, dtype: Any) -> None:
        _sizes(shape)
        self.shape, self.dtype = tuple(shape), read_dtype(dtype)


def _leaf(path: Any, value: Any) -> Leaf:
    if isinstance(value, _Shape):
        return Leaf(str(path), value.shape, value.dtype)
    return Leaf(str(path), None, None, value)


def _parameter(name: str, kind: str, default: Any) -> inspect.Parameter:
    value = _Parameter.empty if default == "absent" else default["constant"]
    return _Parameter(name, _PARAMETER_KINDS[kind], default=value)
