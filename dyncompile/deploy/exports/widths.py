"""Sizes of values at one sample, by what is known of choices in a frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx

from dyncompile.analysis.dims.algebra import BATCH, Dim, active, elastics, is_prefix, kept
from dyncompile.analysis.dims.call import TensorType, Type, flat_types
from dyncompile.deploy.exports import forms
from dyncompile.deploy.exports.constants import Constants
from dyncompile.deploy.exports.frames import Frame, Row
from dyncompile.precision import present_dtypes
from dyncompile.program import Program
from dyncompile.state import state_tensors
from dyncompile.torchlib import tensors_in


class NeedsColumn(Exception):
    """What was to be written depends on a column that is not known here."""

    def __init__(self, choice: str) -> None:
        super().__init__(choice)
        self.choice = choice


class Sizes:
    """Types of one program's values, and the sizes that choices give them."""

    def __init__(
        self, graph: fx.Graph, types: Mapping[str, Type], program: Program, constants: Constants
    ) -> None:
        self._graph, self._types, self._sized, self._constants = graph, types, program.sized, constants
        self._dtypes = present_dtypes(program.captured, state_tensors(program.state))

    def check(self, frame: Frame, node: fx.Node) -> None:
        """Raises NeedsColumn where the size of a value depends on a choice that is not known in a frame."""
        for dims in flat_types(self._types.get(node.name)):
            self._check(frame, dims)

    def size(self, frame: Frame, node: fx.Node, axis: int) -> int | None:
        """The size of one axis; None for a value without a type. Raises NeedsColumn."""
        dims = self._types.get(node.name)
        if not isinstance(dims, tuple):
            return None
        self._check(frame, (dims[axis],))
        return self._shape(frame, (dims[axis],))[0]

    def blank(self, frame: Frame, nodes: Sequence[fx.Node]) -> list[fx.Node]:
        """Zeros in the shapes that the values of `nodes` have outside of the sides of their columns, flat."""
        made: list[fx.Node] = []
        for node in nodes:
            types = flat_types(self._types[node.name])
            for value, dims in zip(tensors_in(node.meta["val"]), types, strict=True):
                made.append(self._zeros(frame, dims, value))
        return made

    def zeros(self, frame: Frame, node: fx.Node) -> fx.Node:
        """Zeros in the shape that a tensor has in a frame. Raises NeedsColumn."""
        dims = self._types[node.name]
        assert isinstance(dims, tuple), node
        self._check(frame, dims)
        return self._zeros(frame, dims, node.meta["val"])

    def _zeros(self, frame: Frame, dims: TensorType, captured: Tensor) -> fx.Node:
        dtype = self._dtypes.get(captured.dtype, captured.dtype)
        return frame.call(torch.zeros, self._shape(frame, dims), dtype=dtype)

    def padded(self, frame: Frame, node: fx.Node, values: Sequence[fx.Node]) -> list[fx.Node]:
        """The tensors of a value in the sizes that they have outside of a frame."""
        types = flat_types(self._types.get(node.name))
        pairs = zip(values, types, strict=True) if types else ((value, ()) for value in values)
        return [self._resized(frame, value, dims, forms.padded) for value, dims in pairs]

    def adapt(self, frame: Frame, key: Any, value: fx.Node) -> fx.Node:
        """A value from outside in the sizes that it has in a frame; see `frames.Adapt`."""
        node, entry = cast("tuple[Any, int]", key if isinstance(key, tuple) else (key, 0))
        if not isinstance(node, fx.Node) or node.graph is not self._graph:
            return value
        types = flat_types(self._types.get(node.name))
        return self._resized(frame, value, types[entry], forms.narrowed) if types else value

    def _resized(self, frame: Frame, value: fx.Node, dims: TensorType, how: Callable[..., Tensor]) -> fx.Node:
        """`value` between the sizes inside a frame and those outside of it."""
        moves = [bool(self._choices(dim) & frame.news) for dim in dims]
        if not any(moves):
            return value
        outer = {name: row for name, row in frame.known.items() if name not in frame.news}
        inside, outside = self._widths(frame.known), self._widths(outer)
        wanted = outside if how is forms.padded else inside
        sizes = [active(dim, wanted, 1) if move else None for dim, move in zip(dims, moves, strict=True)]
        places = [
            self._places(frame, dim, inside, outside) if move and not _leads(dim) else None
            for dim, move in zip(dims, moves, strict=True)
        ]
        return frame.call(how, value, sizes, places)

    def _places(
        self, frame: Frame, dim: Dim, inside: Mapping[str, int], outside: Mapping[str, int]
    ) -> fx.Node:
        """Where the positions that are kept inside lie among those that are kept outside."""
        alone = tuple(factor for factor in dim if factor != BATCH)
        return self._constants.read(frame, torch.searchsorted(kept(alone, outside), kept(alone, inside)))

    def _check(self, frame: Frame, dims: TensorType) -> None:
        missing = set[str]().union(*map(self._choices, dims)) - set(frame.known)
        if missing:
            raise NeedsColumn(min(missing))

    def _shape(self, frame: Frame, dims: TensorType) -> list[int]:
        return [active(dim, self._widths(frame.known), 1) for dim in dims]

    def _choices(self, dim: Dim) -> set[str]:
        """Choices that a dim depends on."""
        return {self._sized[e.name].choice for e in elastics(dim) if e.name in self._sized}

    def _widths(self, known: Mapping[str, Row]) -> dict[str, int]:
        """Sizes of the elastic dims whose choice is known."""
        return {
            name: one.sizes[known[one.choice].index(1.0)]
            for name, one in self._sized.items()
            if one.choice in known
        }


def _leads(dim: Dim) -> bool:
    """Whether what is kept of a dim are its leading positions."""
    return is_prefix(dim, dict.fromkeys(e.name for e in elastics(dim)))
