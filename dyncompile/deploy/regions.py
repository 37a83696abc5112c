"""Compiled execution: a folded graph is cut into regions, each of which `torch.compile` takes as a whole.

What decides, and what runs for some rows only, stays as it is between regions. A region is compiled at most
twice: for one row, and for any number of rows from two on, with a symbolic batch. All other sizes are fixed
once the columns are known, so nothing is ever compiled again.

Where channels are kept one by one, widths change with every batch: such parts run uncompiled.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from threading import RLock
from typing import Any, cast

import torch
from torch import Tensor, fx

from dyncompile.analysis.flow import carries_tensor, tensor
from dyncompile.errors import DyncompileError
from dyncompile.runtime import ops, synthesis
from dyncompile.runtime.compiled import GraphForward, bind_graph
from dyncompile.torchlib import compiled, is_operator, is_symbolic, mark_batch, symbolic_int

_STEERED = frozenset((ops.gain, ops.mix, ops.scale, *synthesis.LAYERS))
"""What takes decisions, and gives values in the shape of what it is given."""
_SIZES = (operator.mul, operator.add, operator.getitem)
_FIX = 'deploy with backend="eager"'


@cache
def check_usable() -> None:
    """Compile something small. Raises DyncompileError where that fails: no C++ compiler, say."""

    def doubled(x: Tensor) -> Tensor:
        return x * 2

    _refuse_or(lambda: compiled(doubled)(torch.zeros(2)), "anything")


def _refuse_or(run: Callable[[], Any], what: str) -> Any:
    """Run something that compiles. Raises DyncompileError with the reason where that fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler warns about matters of its own
            return run()
    except Exception as error:  # tracing and a foreign compiler may fail in any way
        lines = [line.strip() for line in str(error).splitlines()]
        reason = next((line for line in lines if line and not line.endswith("raised:")), "")
        raise DyncompileError(
            f"torch.compile cannot compile {what}: {type(error).__name__}: {reason}",
            fix=f"install a C++ compiler that torch.compile finds, or {_FIX}",
        ) from error


@dataclass
class Regions:
    """The backend: folded graphs become functions whose regions are compiled at their first calls.

    Attributes:
        limit: graphs that may be compiled; regions beyond it run uncompiled.
        graphs: compiled so far.
        refused: region calls that would have compiled another one.
    """

    limit: int
    graphs: int = 0
    refused: int = 0
    lock: RLock = field(default_factory=RLock)

    def __call__(self, graph: fx.Graph, name: str, tensors: Mapping[str, Tensor]) -> GraphForward:
        """A folded graph as a function; nothing is compiled yet."""
        return bind_graph(_Splitter(graph, name, tensors, self).run(), name, tensors)

    def forget(self) -> None:
        """Count from zero: what was compiled belonged to weights that are no longer the model's."""
        with self.lock:
            self.graphs = self.refused = 0

    def grants(self) -> bool:
        """Whether another graph may be compiled; counts it. Called with the lock held."""
        granted = self.graphs < self.limit
        self.graphs += granted
        self.refused += not granted
        return granted


class _Region:
    """One graph of tensors alone, with a form for one row and one for several."""

    def __init__(
        self, graph: fx.Graph, name: str, tensors: Mapping[str, Tensor], axes: list[list[int]], own: Regions
    ) -> None:
        self._graph, self._name, self._tensors, self._axes, self._own = graph, name, tensors, axes, own
        self._eager = bind_graph(graph, name, tensors)
        self._forms: dict[bool, GraphForward] = {}
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        places = [(i, *place) for i, node in enumerate(inputs) if (place := rows_of(node)) is not None]
        self._place = min(places, key=lambda place: place[2], default=None)

    def __call__(self, *inputs: Any) -> Sequence[Any]:
        if self._place is None:
            return self._eager(*inputs)
        at, axis, per_row = self._place
        size = inputs[at].shape[axis]
        if size == 0:
            return self._eager(*inputs)
        several = size > per_row
        form = self._forms.get(several)
        return self._first(several, inputs) if form is None else form(*inputs)

    def _first(self, several: bool, inputs: tuple[Any, ...]) -> Sequence[Any]:
        """Compile a form with the inputs of its first call, and run it."""
        with self._own.lock:
            if several in self._forms:
                return self._forms[several](*inputs)
            if not self._own.grants():
                return self._eager(*inputs)
            form = compiled(fx.GraphModule(cast(Any, dict(self._tensors)), self._graph, "Region"))
            marked = [
                mark_batch(x, axes) if several and isinstance(x, Tensor) else x
                for x, axes in zip(inputs, self._axes, strict=True)
            ]
            outputs = _refuse_or(lambda: form(*marked), self._name)
            self._forms[several] = form
            return outputs


class _Splitter:
    """Puts what can be compiled into regions; the rest of a graph calls these."""

    def __init__(self, graph: fx.Graph, name: str, tensors: Mapping[str, Tensor], own: Regions) -> None:
        self._source, self._name, self._tensors, self._own = graph, name, tensors, own
        self._varying = _varying(graph)
        self._graph = fx.Graph()
        self._env: dict[fx.Node, fx.Node] = {}
        self._count = 0

    def run(self) -> fx.Graph:
        """The graph that calls the regions."""
        waiting: list[fx.Node] = []
        for node in self._source.nodes:
            if node.op == "placeholder":
                self._copy(node)
            elif self._is_plain(node):
                waiting.append(node)
            elif node.op == "output" or self._is_fixed_point(node):
                self._close(waiting)
                waiting = []
                self._copy(node)
        self._graph.lint()
        return self._graph

    def _is_light(self, node: fx.Node) -> bool:
        """Whether a node is read or computed again wherever it is needed: state and sizes."""
        if node.op == "get_attr" or node.target is ops.row_count:
            return True
        return node.op == "call_function" and not carries_tensor(node) and node not in self._varying

    def _is_fixed_point(self, node: fx.Node) -> bool:
        return node.op == "call_function" and not self._is_light(node)

    def _is_plain(self, node: fx.Node) -> bool:
        """Whether `torch.compile` can have a node."""
        if node.op != "call_function" or self._is_light(node) or node in self._varying:
            return False
        return is_operator(node.target) or node.target in _SIZES

    # -- what stays ---------------------------------------------------------------------------

    def _copy(self, node: fx.Node) -> None:
        self._env[node] = self._graph.node_copy(node, self._operand)

    def _operand(self, node: fx.Node) -> fx.Node:
        if node not in self._env:
            assert self._is_light(node)
            self._copy(node)
        return self._env[node]

    # -- regions ------------------------------------------------------------------------------

    def _close(self, nodes: Sequence[fx.Node]) -> None:
        """Call what is waiting as one region, or as it is where no value of it has rows."""
        inside = set(nodes)
        gives = [node for node in nodes if any(self._is_needed(user, inside) for user in node.users)]
        if not gives:
            return
        region = _RegionGraph(self, gives, nodes)
        if not any(region.axes):
            for node in nodes:
                self._copy(node)
            return
        self._count += 1
        name = f"{self._name}, region {self._count}"
        call = _named(_Region(region.graph, name, region.tensors(self._tensors), region.axes, self._own))
        outputs = self._graph.call_function(call, tuple(self._operand(node) for node in region.inputs))
        for at, node in enumerate(gives):
            self._env[node] = self._graph.call_function(operator.getitem, (outputs, at))

    def _is_needed(self, user: fx.Node, inside: set[fx.Node]) -> bool:
        """Whether something behind a region reads a value of it, if only its size."""
        if user in inside:
            return False
        return not self._is_light(user) or any(self._is_needed(one, inside) for one in user.users)

    def is_light(self, node: fx.Node) -> bool:
        """See `_is_light`."""
        return self._is_light(node)


class _RegionGraph:
    """The graph of one region: values come in as inputs, state by short names, sizes are read again."""

    def __init__(self, splitter: _Splitter, gives: Sequence[fx.Node], nodes: Sequence[fx.Node]) -> None:
        self._splitter, self._inside = splitter, set(nodes)
        self.graph = fx.Graph()
        self.inputs: list[fx.Node] = []
        self._state: dict[str, str] = {}
        self._env: dict[fx.Node, fx.Node] = {}
        self._rows: list[fx.Node] = []
        for node in self._reads(nodes):
            self._env[node] = self.graph.placeholder(f"x{len(self.inputs)}")
            self._env[node].meta = dict(node.meta)
            self.inputs.append(node)
        for node in nodes:
            self._copy(node)
        self.graph.output(tuple(self._env[node] for node in gives))
        self.graph.eliminate_dead_code()
        self.graph.lint()

    def tensors(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state that the region reads, by its own names."""
        return {own: state[name] for name, own in self._state.items()}

    @property
    def axes(self) -> list[list[int]]:
        """For every input the axes whose size follows the batch."""
        return [_batch_axes(node) for node in self.inputs]

    def _reads(self, nodes: Sequence[fx.Node]) -> list[fx.Node]:
        """Values that come from outside, those that sizes are read from included."""
        found: dict[fx.Node, None] = {}
        seen, todo = set[fx.Node](), [operand for node in nodes for operand in node.all_input_nodes]
        while todo:
            node = todo.pop(0)
            if node in seen or node in self._inside or node.op == "get_attr":
                continue
            seen.add(node)
            if node.target is ops.row_count:
                continue
            if self._splitter.is_light(node):
                todo += node.all_input_nodes
            else:
                found[node] = None
        return list(found)

    def _copy(self, node: fx.Node) -> None:
        for operand in node.all_input_nodes:
            self._operand(operand)
        self._env[node] = self.graph.node_copy(node, self._env.__getitem__)

    def _operand(self, node: fx.Node) -> None:
        if node in self._env:
            return
        if node.op == "get_attr":
            own = self._state.setdefault(str(node.target), f"t{len(self._state)}")
            self._env[node] = self.graph.get_attr(own)
        elif node.target is ops.row_count:
            self._env[node] = self._row_count()
        else:
            self._copy(node)

    def _row_count(self) -> fx.Node:
        """The number of rows, read from an input."""
        if not self._rows:
            places = [
                (place[1], place[0], node) for node in self.inputs if (place := rows_of(node)) is not None
            ]
            per_row, axis, node = min(places, key=lambda place: place[0])
            size = self.graph.call_function(torch.ops.aten.sym_size.int, (self._env[node], axis))
            if per_row > 1:
                size = self.graph.call_function(cast(Any, operator).floordiv, (size, per_row))
            self._rows.append(size)
        return self._rows[0]


def _varying(graph: fx.Graph) -> set[fx.Node]:
    """Nodes whose sizes a decision that is not settled moves, or that hold such a decision."""
    found = set[fx.Node]()
    for node in graph.nodes:
        if node.op == "output":
            continue
        read = node.all_input_nodes
        if node.target in ops.FOLDABLE:
            found.add(node)
        elif node.target in _STEERED or (node.op == "call_function" and _is_join(node)):
            values = [one for one in read if one.target not in ops.FOLDABLE]
            found.update([node] if any(one in found for one in values) else [])
        elif any(one in found for one in read):
            found.add(node)
    return found


def _is_join(node: fx.Node) -> bool:
    return not is_operator(node.target) and node.target not in (*_SIZES, ops.row_count)


def rows_of(node: fx.Node) -> tuple[int, int] | None:
    """(axis that holds the rows of a value, positions of it per row); None where it has no rows."""
    for axis in _batch_axes(node):
        size = symbolic_int(cast(torch.SymInt, tensor(node).shape[axis]))
        if len(size.free_symbols) == 1:
            return axis, int(size.subs(next(iter(size.free_symbols)), 1))
    return None


def _batch_axes(node: fx.Node) -> list[int]:
    return [axis for axis, size in enumerate(tensor(node).shape) if is_symbolic(size)]


def _named(region: _Region) -> Callable[..., Any]:
    """A function that graphs can call."""

    def run(*inputs: Any) -> Sequence[Any]:
        return region(*inputs)

    run.__name__ = run.__qualname__ = "region"
    return run
