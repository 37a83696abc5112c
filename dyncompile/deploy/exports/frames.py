"""Graphs under construction that hold conditions: the program itself, and each side of a condition.

A side takes what it reads from outside as inputs, as ``torch.cond`` wants it; a frame finds out what these
are while it is filled. Nothing that a side gives may be the memory of an input.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import fx, nn

from dyncompile.analysis.flow import memory_of
from dyncompile.deploy.exports import forms
from dyncompile.torchlib import is_several

Key = Any
"""What a value goes by: a node of the source's graph, an entry of one (node, i), or a `Named`."""
Row = tuple[float, ...]

STATE, ROWS = "state", "rows"
Named = tuple[str, str]
"""(STATE, name of a tensor), (ROWS, name of a choice), or a value that a writer named."""

Adapt = Callable[["Frame", Key, fx.Node], fx.Node]
"""Gives a value that comes from outside the sizes that the choices known in a frame give it."""

Full = Callable[["Frame", str], fx.Node]
"""Makes the row of a choice that nothing asked for."""

_COND = torch.ops.higher_order.cond


class Frame:
    """A graph that is being written.

    Attributes:
        graph: the graph.
        known: choices whose row is fixed here, with the row.
        values: what is computed here, or found outside, by key; constants of Python as they are.
        taken: choices that were decided here, or inside, by name: the decision [1, width].
        stops: exits through which the sample leaves here, by choice.
        adapt: see `Adapt`.
    """

    def __init__(
        self, parent: Frame | None, known: Mapping[str, Row], stops: frozenset[str], adapt: Adapt
    ) -> None:
        self.graph = fx.Graph()
        self.adapt = adapt
        self.known, self.stops = known, stops
        self.values: dict[Key, Any] = {}
        self.taken: dict[str, fx.Node] = {}
        self.sides = nn.Module()
        self._parent = parent
        self._captured: dict[Key, fx.Node] = {}
        self._last_input: fx.Node | None = None

    def inside(
        self, known: Mapping[str, Row] | None = None, stops: Iterable[str] = (), adapt: Adapt | None = None
    ) -> Frame:
        """An empty frame that may read what this one holds."""
        return Frame(self, {**self.known, **(known or {})}, self.stops.union(stops), adapt or self.adapt)

    def begin(self, known: Mapping[str, Row], adapt: Adapt) -> None:
        """Start with another program."""
        self.known, self.adapt = {**self.known, **known}, adapt

    @property
    def news(self) -> set[str]:
        """Choices that are known here and not outside."""
        return set(self.known) - set(self._parent.known if self._parent else ())

    # -- reading ------------------------------------------------------------------------------

    def has(self, key: Key) -> bool:
        """Whether a value was computed here or outside."""
        if key in self.values or _pair(key)[0] in self.values:
            return True
        return self._parent.has(key) if self._parent else _pair(key)[0] == STATE

    def find(self, key: Key) -> Any:
        """A value as a node of this graph, or as a constant; several values as a list."""
        if key not in self.values:
            self.values[key] = self._found(key)
        return self.values[key]

    def _found(self, key: Key) -> Any:
        first, second = _pair(key)
        if first in self.values:
            return self._entry(first, second)
        if self._parent is None:
            assert first == STATE, key
            return self._at_top(lambda: self.graph.get_attr(second))
        outside = self._parent.peek(key)
        if is_several(outside):
            return [self.find((key, i)) for i in range(len(outside))]
        if not isinstance(outside, fx.Node):
            return outside
        self._captured[key] = self._at_top(lambda: self.graph.placeholder(_label(key)))
        return self.adapt(self, key, self._captured[key]) if self.news else self._captured[key]

    def peek(self, key: Key) -> Any:
        """What `find` gives in the frame that computed the value."""
        here = key in self.values or _pair(key)[0] in self.values or self._parent is None
        return self.find(key) if here or self._parent is None else self._parent.peek(key)

    def _entry(self, node: fx.Node, index: int) -> Any:
        several = self.values[node]
        return several[index] if is_several(several) else self.call(operator.getitem, several, index)

    def _at_top(self, make: Callable[[], fx.Node]) -> fx.Node:
        """A node after the inputs and those made so before."""
        if self._last_input is None:
            with self.graph.inserting_before():
                self._last_input = make()
        else:
            with self.graph.inserting_after(self._last_input):
                self._last_input = make()
        return self._last_input

    def input(self, name: str) -> fx.Node:
        """A new input of the whole program."""
        return self._at_top(lambda: self.graph.placeholder(name))

    # -- writing ------------------------------------------------------------------------------

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A call at the end of the graph."""
        return self.graph.call_function(target, args, kwargs)

    def take(self, choice: str, rows: fx.Node) -> None:
        """Note a decision [1, width]."""
        self.values[ROWS, choice] = self.taken[choice] = rows

    def cond(
        self,
        predicate: fx.Node,
        fills: Sequence[tuple[Frame, Callable[[Frame], Sequence[fx.Node]]]],
        full: Full,
    ) -> list[fx.Node]:
        """What the first of two sides gives where `predicate` holds, else the second.

        Decisions that a side takes are given, too; `full` makes those that the other side does not take.
        """
        given = [list(fill(side)) for side, fill in fills]
        sides = [side for side, _ in fills]
        choices = list(dict.fromkeys(name for side in sides for name in side.taken))
        operands: dict[fx.Node, list[Key]] = {}
        for key in dict.fromkeys(key for side in sides for key in side._captured):
            operands.setdefault(self.find(key), []).append(key)
        keys = list(operands.values())
        names = [
            self._add_side(
                side, keys, [*own, *(side.taken.get(c) or self._known(side, c, full) for c in choices)]
            )
            for side, own in zip(sides, given, strict=True)
        ]
        branches = [self._at_top(lambda name=name: self.graph.get_attr(name)) for name in names]
        result = self.call(_COND, predicate, *branches, tuple(operands))
        count = len(given[0])
        values = [self.call(operator.getitem, result, i) for i in range(count + len(choices))]
        for choice, rows in zip(choices, values[count:], strict=True):
            self.take(choice, rows)
        return values[:count]

    @staticmethod
    def _known(side: Frame, choice: str, full: Full) -> fx.Node:
        """What a side says of a decision that it does not take."""
        return side.find((ROWS, choice)) if side.has((ROWS, choice)) else full(side, choice)

    def _add_side(self, side: Frame, keys: Sequence[Sequence[Key]], outputs: Sequence[fx.Node]) -> str:
        name = f"side_{len(list(self.sides.children()))}"
        self.sides.add_module(name, side.finished(keys, outputs))
        return name

    def finished(self, keys: Sequence[Sequence[Key]], outputs: Sequence[fx.Node]) -> fx.GraphModule:
        """The side of a condition with an input for each of `keys`, in order; what goes by several is one."""
        for same in reversed(keys):
            first, *others = [self._captured[key] for key in same if key in self._captured] or [
                self._at_top(lambda same=same: self.graph.placeholder(_label(same[0])))
            ]
            for other in others:
                other.replace_all_uses_with(first)
                self.graph.erase_node(other)
            next(iter(self.graph.nodes)).prepend(first)
        self.graph.output(tuple(self._owned(outputs)))
        self.graph.lint()
        return fx.GraphModule(self.sides, self.graph)

    def _owned(self, outputs: Sequence[fx.Node]) -> list[fx.Node]:
        """Outputs with memory of their own, each with another's."""
        views = {node: node.args[0] for node in self.graph.nodes if node.target in forms.VIEWS}
        memory: dict[fx.Node, fx.Node] = memory_of(self.graph.nodes, views)  # pyright: ignore
        own: list[fx.Node] = []
        for node in outputs:
            fresh = memory[node] is node or memory[node].target is _COND
            if node.op != "call_function" or node in own or not fresh:
                node = self.call(torch.clone, node, memory_format=torch.contiguous_format)
            own.append(node)
        return own


def _pair(key: Key) -> tuple[Any, Any]:
    """Both parts of a key that is an entry or a name."""
    return cast("tuple[Any, Any]", key) if isinstance(key, tuple) else (None, None)


def _label(key: Key) -> str:
    """A name for an input."""
    text = "_".join(map(str, _pair(key))) if isinstance(key, tuple) else str(key)
    return "in_" + re.sub(r"\W", "_", text)
