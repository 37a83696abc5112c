"""Rewrite one graph so that elastic dims take given sizes: plain ints, or graph nodes that hold ints.

Parameters are narrowed where they enter the graph, literals that name sizes follow the types. Where the kept
positions are a prefix a view is enough; elsewhere they are gathered.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from dyncompile.analysis.dims.algebra import (
    BATCH,
    Dim,
    Elastic,
    Factor,
    Sum,
    elastics,
    factor_size,
    is_prefix,
    resized,
)
from dyncompile.analysis.dims.call import Given, Rewrite, Size, TensorType, bind
from dyncompile.analysis.dims.facts import GraphDims
from dyncompile.runtime import ops
from dyncompile.torchlib import is_several, is_symbolic, items, nodes_in, schema_of

aten = torch.ops.aten
Extent = int | fx.Node
_SIZE_ARITHMETIC = (ops.extent, ops.count, operator.mul, operator.add, aten.sym_size.int)
Chooser = Callable[[fx.Node], fx.Node | None]
"""Gives another node for a state read (private statistics), or None to narrow it by its type."""


class Resizer:
    """Resizes one graph in place; the Editor's tool.

    Args:
        graph: the graph; its node names must be those of `dims`.
        dims, state: types of its nodes and of the state that it reads.
        sizes: elastic name -> active size. A size that is a node must precede every use of its dim.
        picks: elastic name -> node that holds which positions are active, where these are no prefix.
    """

    def __init__(
        self,
        graph: fx.Graph,
        dims: GraphDims,
        state: Mapping[str, TensorType],
        sizes: Mapping[str, Extent],
        picks: Mapping[str, fx.Node] | None = None,
    ) -> None:
        self._graph, self._dims, self._state, self._sizes = graph, dims, state, sizes
        self._picks = picks or {}
        self._extents: dict[Dim, Extent] = {}
        self._indices: dict[Dim, fx.Node] = {}
        self._batch: fx.Node | None = None

    def run(self, statistics: frozenset[str], choose: Chooser) -> None:
        """Narrow state and rewrite literals. `choose` may replace reads of `statistics` altogether."""
        reads = [node for node in self._graph.nodes if node.op == "get_attr"]
        calls = [node for node in self._graph.nodes if node.name in self._dims.rewrites]
        for node in reads:
            self._narrow_read(node, statistics, choose)
        for node in [node for node in self._graph.nodes if node.target is ops.gains]:
            self._narrow_gains(node)
        for node in calls:
            for rewrite in self._dims.rewrites[node.name]:
                self._apply(node, rewrite)
        drop_unused(self._graph, _SIZE_ARITHMETIC)
        self._graph.lint()

    # -- state --------------------------------------------------------------------------------

    def _narrow_read(self, node: fx.Node, statistics: frozenset[str], choose: Chooser) -> None:
        name = str(node.target)
        private = choose(node) if name in statistics else None
        if private is not None:
            node.replace_all_uses_with(private, delete_user_cb=lambda user: user is not private)
            return
        dims = self._state.get(name, ())
        if not any(resized(dim, self._sizes) for dim in dims):
            return
        users = [user for user in node.users if user.target is not getattr]
        narrowed, indices = self._narrowed(node, dims)
        for user in users:
            user.replace_input_with(node, narrowed)
        if name in statistics and indices:
            self._write_back(node, narrowed, indices[0], users)

    def _narrow_gains(self, node: fx.Node) -> None:
        """Gains come for all positions of a dim; data holds the active ones."""
        dims = self._dims.types[node.name]
        assert isinstance(dims, tuple)
        users = list(node.users)
        narrowed, _ = self._narrowed(node, dims)
        for user in users:
            user.replace_input_with(node, narrowed)

    def _narrowed(self, node: fx.Node, dims: TensorType) -> tuple[fx.Node, list[fx.Node]]:
        """(the narrowed read, index nodes of the axes that had to be gathered)."""
        views: list[Extent | None] = [None] * len(dims)
        gathers: list[tuple[int, Dim]] = []
        for axis, dim in enumerate(dims):
            if not resized(dim, self._sizes):
                continue
            if is_prefix(dim, self._sizes) and not resized(dim, self._picks):
                views[axis] = self.extent(dim)
            else:
                gathers.append((axis, dim))
        current = node
        if any(view is not None for view in views):
            current = self._insert(ops.prefix, (current, tuple(views)), like=node)
        indices: list[fx.Node] = []
        for axis, dim in gathers:
            index = self._index(node, dim)
            current = self._insert(ops.take, (current, axis, index), like=node)
            indices.append(index)
        return current, indices

    def _index(self, node: fx.Node, dim: Dim) -> fx.Node:
        """The active positions of a dim. Those that a decision picks are worked out once for all reads."""
        if dim in self._indices:
            return self._indices[dim]
        order = [e.name for e in elastics(dim) if e.name in self._sizes]
        keeps = tuple(self._picks.get(name, self._sizes[name]) for name in order)
        index = self._insert(ops.positions, (node, ops.encode(dim, order), *keeps))
        if resized(dim, self._picks):
            self._indices[dim] = index
        return index

    def _write_back(self, buffer: fx.Node, copy: fx.Node, index: fx.Node, users: list[fx.Node]) -> None:
        """Statistics that an operator updated on a gathered copy return to their buffer."""
        for user in users:
            if _updates_statistics(user):
                with self._graph.inserting_after(user):
                    self._graph.call_function(ops.put, (buffer, index, copy))

    # -- sizes --------------------------------------------------------------------------------

    def extent(self, dim: Dim) -> Extent:
        """The active size of a dim as an int or as a node."""
        if dim not in self._extents:
            self._extents[dim] = self._product(dim)
        return self._extents[dim]

    def _product(self, dim: Dim) -> Extent:
        constant, total = 1, None
        for factor in dim:
            value = self._factor(factor)
            if isinstance(value, int):
                constant *= value
            else:
                total = value if total is None else self._scalar(operator.mul, total, value)
        if total is None:
            return constant
        return total if constant == 1 else self._scalar(operator.mul, total, constant)

    def _factor(self, factor: Factor) -> Extent:
        if factor == BATCH:
            return self._rows()
        if isinstance(factor, Elastic):
            return self._sizes.get(factor.name, factor.size)
        if not isinstance(factor, Sum):
            return factor_size(factor)
        total: Extent = 0
        for segment in factor.segments:
            part = self.extent(segment)
            total = (
                total + part if isinstance(total, int) and isinstance(part, int) else self._sum(total, part)
            )
        return total

    def _sum(self, a: Extent, b: Extent) -> Extent:
        if isinstance(a, int) and a == 0:
            return b
        return self._scalar(operator.add, a, b)

    def _rows(self) -> fx.Node:
        """The batch size, read from the first batched input."""
        if self._batch is None:
            inputs = [n for n in self._graph.nodes if n.op == "placeholder"]
            source = next(n for n in inputs if leading_symbol(n) is not None)
            with self._graph.inserting_after(inputs[-1]):
                self._batch = self._graph.call_function(aten.sym_size.int, (source, 0))
            self._batch.meta["val"] = leading_symbol(source)
        return self._batch

    def _scalar(self, function: Any, a: Extent, b: Extent) -> fx.Node:
        node = self._insert(function, (a, b))
        node.meta["val"] = function(_value(a), _value(b))
        return node

    def _insert(self, target: Any, args: tuple[Any, ...], like: fx.Node | None = None) -> fx.Node:
        """A call right after the last of its operands."""
        with self._graph.inserting_after(max(nodes_in(args))):
            node = self._graph.call_function(target, args)
        if like is not None and "val" in like.meta:
            node.meta["val"] = like.meta["val"]
        return node

    # -- literals -----------------------------------------------------------------------------

    def _apply(self, node: fx.Node, rewrite: Rewrite) -> None:
        if not any(resized(dim, self._sizes) for dim in rewrite.when):
            return
        present = bind(node)
        new = {name: self._literal(value, present) for name, value in rewrite.arguments.items()}
        if rewrite.target is not None:
            node.target = rewrite.target
            present = {}
        set_arguments(node, {**present, **new})

    def _literal(self, value: Any, present: Mapping[str, Any]) -> Any:
        if isinstance(value, Given):
            return present[value.argument]
        if is_several(value):
            return [self._literal(entry, present) for entry in items(value)]
        if not isinstance(value, Size):
            return value
        if value.old is not None and not resized(value.dim, self._sizes):
            argument, position = value.old
            return present[argument][position]
        return self.extent(value.dim)


def restore_reads(graph: fx.Graph) -> None:
    """Undo what `Resizer` did to state: reads are at full size again. Literals go on following sizes.

    Sizes of one tensor cannot be decided in two steps, since the positions that the first step gathers are
    those of the full tensor. So whoever resizes a graph again undoes this first and gives all sizes.
    """
    for node in list(graph.nodes):
        if node.target is ops.put:
            graph.erase_node(node)
        elif node.target in (ops.prefix, ops.take):
            source = node.args[0]
            assert isinstance(source, fx.Node)
            node.replace_all_uses_with(source)
    drop_unused(graph, (ops.prefix, ops.take, ops.positions))


def drop_unused(graph: fx.Graph, targets: Sequence[Any]) -> None:
    """Erase calls of `targets` whose results nobody reads."""
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and node.target in targets and not node.users:
            graph.erase_node(node)


def set_arguments(node: fx.Node, arguments: Mapping[str, Any]) -> None:
    """Give an operator node arguments by schema name; trailing defaults are left out."""
    schema = schema_of(node.target)
    if schema is None:  # operators of this package are given all their arguments by position
        node.args = tuple(arguments.values())
        return
    positional = [a for a in schema.arguments if not a.kwarg_only]
    while positional and _is_default(positional[-1], arguments):
        positional.pop()
    node.args = tuple(arguments.get(a.name, a.default_value) for a in positional)
    keywords = [a for a in schema.arguments if a.kwarg_only and not _is_default(a, arguments)]
    node.kwargs = {a.name: arguments[a.name] for a in keywords}


def _is_default(argument: Any, arguments: Mapping[str, Any]) -> bool:
    if argument.name not in arguments:
        return argument.has_default_value()
    value = arguments[argument.name]
    return argument.has_default_value() and not isinstance(value, fx.Node) and value == argument.default_value


def _updates_statistics(node: fx.Node) -> bool:
    arguments = bind(node) if schema_of(node.target) is not None else {}
    return bool(arguments.get("training", arguments.get("use_input_stats", False)))


def narrowing(value: fx.Node) -> Iterator[fx.Node]:
    """A value and, one after the other, what it is a narrowed part of; the whole comes last."""
    yield value
    while value.target in (ops.prefix, ops.take):
        assert isinstance(value.args[0], fx.Node)
        value = value.args[0]
        yield value


def leading_symbol(node: fx.Node) -> Any:
    """The symbolic size of a value's first axis (the batch of an input); None where it is a number."""
    value = node.meta.get("val")
    if isinstance(value, Tensor) and value.dim() > 0 and is_symbolic(value.shape[0]):
        return value.shape[0]
    return None


def _value(extent: Extent) -> Any:
    return extent.meta["val"] if isinstance(extent, fx.Node) else extent
