"""One node under inference, as a rule sees it: arguments bound by schema, sizes as plain ints.

A rule is a function ``(Call) -> type of the output``. It unifies, splits and freezes through `Call.env`, and
records what later stages need: literals that depend on widths (`rewrite`), contractions (`contracts`), dims
that a norm or softmax mixes (`normalizes`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import fx

from dyncompile.analysis.dims.algebra import BATCH_STAND_IN, Dim, fixed, is_batched, size
from dyncompile.analysis.dims.environment import Environment
from dyncompile.torchlib import Operator, is_several, items, schema_of, symbolic_int

TensorType = tuple[Dim, ...]
Type = TensorType | list["Type"] | None
"""One dim per axis of a tensor; a list for several outputs; None for what is not a tensor."""
Rule = Callable[["Call"], Type]


class Unsupported(Exception):
    """A rule meets a case that it does not model: the framework freezes what the node touches."""


class Decompose(Exception):
    """A rule leaves this form of a composite operator to the rules of its parts."""


@dataclass(frozen=True, slots=True)
class Size:
    """Stands in a literal for the active size of `dim`.

    `old` = (argument, position) names the traced entry, which stays where `dim` is not resized.
    """

    dim: Dim
    old: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Given:
    """Stands for the node's present argument of this name."""

    argument: str


@dataclass(frozen=True, slots=True)
class Rewrite:
    """New arguments of a node, to be applied as soon as one of the dims in `when` is resized.

    `target` None keeps the operator and updates the named arguments; otherwise the node becomes a call of
    `target` with exactly these arguments.
    """

    arguments: Mapping[str, Any]
    when: tuple[Dim, ...]
    target: Operator | None = None


@dataclass(slots=True)
class Findings:
    """What inference learned about one node besides its type."""

    rewrites: list[Rewrite] = field(default_factory=list[Rewrite])
    contractions: list[tuple[Dim, ...]] = field(default_factory=list[tuple[Dim, ...]])
    normalized: list[tuple[Dim, str]] = field(default_factory=list[tuple[Dim, str]])
    statistics: list[str] = field(default_factory=list[str])
    unmodeled: bool = False


def stand_in(value: Any) -> Any:
    """A size or scalar without symbols: every batch symbol replaced by the prime stand-in."""
    if isinstance(value, torch.SymInt):
        return int(_substituted(symbolic_int(value)))
    return value


@cache
def _substituted(expression: Any) -> Any:
    return expression.subs(dict.fromkeys(expression.free_symbols, BATCH_STAND_IN))


def shape_of(value: torch.Tensor) -> tuple[int, ...]:
    """Shape with the batch as its stand-in."""
    return tuple(stand_in(n) for n in value.shape)


def meta(node: fx.Node) -> Any:
    """The traced value of a node: a fake tensor, a tuple of them, a symbolic or plain scalar."""
    return node.meta.get("val")


def bind(node: fx.Node) -> dict[str, Any]:
    """Arguments of an operator node by schema name, trailing defaults filled in."""
    parameters = _parameters(node.target)
    if parameters is None:
        assert callable(node.target)
        return dict(_signature(node.target).bind(*node.args, **node.kwargs).arguments)
    bound = dict(parameters)
    bound.update(zip(bound, node.args, strict=False))
    bound.update(node.kwargs)
    return bound


@cache
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)


@cache
def _parameters(target: Any) -> dict[str, Any] | None:
    """Argument names of an operator with their defaults, in order."""
    schema = schema_of(target)
    if schema is None:
        return None
    return {a.name: a.default_value if a.has_default_value() else None for a in schema.arguments}


class Call:
    """The view of one node that a rule works on."""

    def __init__(self, node: fx.Node, env: Environment, types: Mapping[fx.Node, Type]) -> None:
        self.node = node
        self.env = env
        self.findings = Findings()
        self.arguments: dict[str, Any] = bind(node)
        self._types = types
        self.accounted: list[Dim] = []

    # -- arguments ----------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Any:
        """A literal argument; nodes that hold a size become ints."""
        return _literal(self.arguments[name])

    def has(self, name: str) -> bool:
        """Whether a tensor argument is given."""
        value = self.arguments.get(name)
        return isinstance(value, fx.Node) and value in self._types

    def type(self, name: str) -> TensorType:
        """Type of a tensor argument."""
        return self.type_of(self.arguments[name])

    def type_of(self, node: Any) -> TensorType:
        """Type of a node that must hold one tensor, bindings followed."""
        found = self._types.get(node) if isinstance(node, fx.Node) else None
        if not isinstance(found, tuple):
            raise Unsupported(f"{node} is not a typed tensor")
        return tuple(self.env.normal(dim) for dim in found)

    def types(self, name: str) -> list[TensorType]:
        """Types of a list of tensors."""
        return [self.type_of(node) for node in self.arguments[name] if node is not None]

    def tensors(self) -> list[TensorType]:
        """Types of all tensor inputs, lists opened."""
        return [t for node in self.node.all_input_nodes for t in flat_types(self._types.get(node))]

    def axis(self, name: str, rank: int) -> int:
        """A literal axis, made non-negative."""
        return int(self[name]) % max(rank, 1)

    def axes(self, name: str, rank: int) -> list[int]:
        """A literal list of axes, made non-negative; None or empty means all."""
        value = self[name]
        if value is None or value == []:
            return list(range(rank))
        return [int(v) % max(rank, 1) for v in ([value] if isinstance(value, int) else value)]

    @property
    def has_rows(self) -> bool:
        """Whether an input holds samples; parameters, and what is made of them, do not."""
        return any(is_batched(self.env.normal(dim)) for dims in self.tensors() for dim in dims)

    # -- the output ---------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """Traced shape of the (first) output."""
        return shape_of(items(meta(self.node))[0])

    # -- what a rule records ------------------------------------------------------------------

    def rewrite(self, /, *, target: Any = None, when: Sequence[Dim] | None = None, **arguments: Any) -> None:
        """Arguments that follow widths: `Size(dim)` stands for the active size of a dim."""
        dims = (
            tuple(when)
            if when is not None
            else tuple(s.dim for value in arguments.values() for s in _sizes(value))
        )
        self.findings.rewrites.append(Rewrite(arguments, dims, target))

    def contracts(self, *dims: Dim) -> None:
        """This node spends one multiply-accumulate per position of the product of `dims`."""
        self.findings.contractions.append(dims)
        self.accounted += dims

    def normalizes(self, dims: Sequence[Dim], how: str) -> None:
        """`how` mixes the positions of `dims`: masking one is not the same as removing it."""
        self.findings.normalized += [(dim, how) for dim in dims]
        self.accounted += dims

    def sums(self, *dims: Dim) -> None:
        """`dims` are summed over. Masks have rows: where no input has any, nothing leaves positions out."""
        self.accounted += dims
        if not self.has_rows:
            self.normalizes(dims, f"{str(self.node.target).split('.')[1]} of parameters")

    def reduces(self, *dims: Dim) -> None:
        """`dims` are matched against another input, and are not in the output."""
        self.accounted += dims

    def freeze(self, dim: Dim, reason: str) -> Dim:
        """`dim` must keep its size; returns the fixed dim."""
        self.env.freeze(dim, reason)
        return self.env.normal(dim)


def sizes_of(argument: str, dims: Sequence[Dim]) -> list[Size]:
    """One `Size` per axis for a list argument that has one entry per axis."""
    return [Size(dim, (argument, i)) for i, dim in enumerate(dims)]


def flat_types(found: Type) -> list[TensorType]:
    """All tensor types inside a type."""
    if isinstance(found, list):
        return [t for part in found for t in flat_types(part)]
    return [] if found is None else [found]


def fixed_type(shape: Sequence[int]) -> TensorType:
    """The type of a tensor of which nothing can move."""
    return tuple(map(fixed, shape))


def kept_where_equal(x: Sequence[Dim], shape: Sequence[int]) -> TensorType:
    """Each dim of `x` where the output has its size, else a fixed dim (for operators along some axes)."""
    return tuple(dim if size(dim) == n else fixed(n) for dim, n in zip(x, shape, strict=True))


def _literal(value: Any) -> Any:
    if isinstance(value, fx.Node):
        held = meta(value)
        return value if isinstance(held, torch.Tensor) else stand_in(held)
    return [_literal(entry) for entry in items(value)] if is_several(value) else stand_in(value)


def _sizes(value: Any) -> list[Size]:
    """Every `Size` in an argument or a list of arguments."""
    return [entry for entry in items(value) if isinstance(entry, Size)]
