"""Partial evaluation of one graph.

What decisions, sizes and state alone determine is computed ahead of time; with some decisions settled, what
these determine.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx

from dyncompile.analysis.exits import find_leaves
from dyncompile.analysis.skips import Skip, find_skips
from dyncompile.precision import no_autocast, present_dtypes
from dyncompile.program import POLICY, Decision
from dyncompile.runtime import ops, synthesis
from dyncompile.runtime.steering import Group
from dyncompile.runtime.synthesis import Kernels
from dyncompile.state import STATE_PREFIX, Dtypes
from dyncompile.torchlib import items, map_nodes

aten = torch.ops.aten
_ARITHMETIC: tuple[Callable[..., Any], ...] = (operator.mul, operator.add)


Way = tuple[Any, ...]
"""How a tensor comes from the state: a name, and what was taken of it, step by step."""


@dataclass(frozen=True)
class Folded:
    """A graph after partial evaluation.

    Attributes:
        graph: what is left to do; its first input is the policy if it was asked to keep it.
        state: the tensors that it reads, by name.
        ways: where each comes from; empty for one that was computed.
    """

    graph: fx.Graph
    state: Mapping[str, Tensor]
    ways: Mapping[str, Way]


def fold(
    source: fx.Graph, group: Group | None, tensors: Mapping[str, Tensor], captured: Dtypes
) -> tuple[fx.Graph, dict[str, Tensor]]:
    """(static graph, the state that it reads by name) of a graph whose decisions are all known.

    Narrowed tensors keep the source's name. Write-backs of statistics are dropped: a static network owns its
    own.
    """
    found = fold_some(source, {} if group is None else group.decisions, tensors, captured)
    return found.graph, dict(found.state)


def fold_some(
    source: fx.Graph,
    decisions: Mapping[str, Decision],
    tensors: Mapping[str, Tensor],
    captured: Dtypes,
    *,
    keeps_policy: bool = False,
    gathers: bool = False,
) -> Folded:
    """A graph with some of its decisions settled; others are taken when it runs.

    Args:
        source: any graph over the state; it stays as it is.
        decisions: what is settled, by choice.
        tensors: the state by name. Narrowed parts of it are views where they are leading ones.
        captured: see `Program.captured`.
        keeps_policy: the result takes the policy as its first input, whether or not it asks it.
        gathers: positions of state that are not the leading ones are gathered at each run, not now, right
            before they are needed: then nothing that `state` holds is a copy of a tensor, and few copies
            live at a time.
    """
    folder = _Folder(source, decisions, tensors, captured, keeps_policy, gathers)
    with no_autocast(tensors.values()):  # what is kept has the state's dtypes, whoever calls first
        for node in source.nodes:
            folder.visit(node)
    folder.name_described()
    if gathers:
        _sink(folder.graph)
    folder.graph.eliminate_dead_code(lambda node: node.target is ops.decide or node.is_impure())
    folder.graph.lint()
    return Folded(folder.graph, folder.state, folder.ways)


class _Folder:
    def __init__(
        self,
        source: fx.Graph,
        decisions: Mapping[str, Decision],
        tensors: Mapping[str, Tensor],
        captured: Dtypes,
        keeps_policy: bool,
        gathers: bool,
    ) -> None:
        self._decisions, self._tensors = decisions, tensors
        self._dtypes = present_dtypes(captured, tensors)
        self._keeps_policy, self._gathers = keeps_policy, gathers
        self._known: dict[fx.Node, Any] = {}
        self._names: dict[fx.Node, str] = {}
        self._ways: dict[fx.Node, Way] = {}
        self._static: dict[fx.Node, fx.Node] = {}
        self._last_read: fx.Node | None = None
        self._products = {skip.product: skip for skip in find_skips(source) if skip.choice in decisions}
        idle = [skip for skip in self._products.values() if skip.kept and not any(self._gains(skip.product))]
        self._ends = {skip.exit: skip for skip in idle}
        self._left_out = {skip.product for skip in idle}
        for skip in self._products.values():
            for one, gain in zip(skip.alternatives, self._gains(skip.product), strict=True):
                self._left_out.update(one.body if gain == 0 else ())
        for leave in find_leaves(source):
            if leave.choice not in decisions:
                continue
            stops = self._stops(leave.node)
            self._left_out.update(leave.rest if stops else leave.own)
        self._forms: dict[Any, tuple[int, Callable[[fx.Node], Any]]] = {
            ops.gain: (1, self._multiplied),
            ops.mix: (1, self._multiplied),
            ops.scale: (1, self._scaled),
            ops.leave: (2, self._left),
            **dict.fromkeys(synthesis.LAYERS, (1, self._with_one_kernel)),
        }
        self.graph = fx.Graph()
        self.state: dict[str, Tensor] = {}
        self.ways: dict[str, Way] = {}
        self._described: list[tuple[fx.Node, fx.Node]] = []

    def visit(self, node: fx.Node) -> None:
        if node in self._left_out:
            return
        if node in self._ends:
            self._static[node] = self._without_branch(self._ends[node])
        elif self._is_settled(node):
            self._static[node] = self._forms[node.target][1](node)
        elif not self._learn(node):
            self._leave(node)

    def _learn(self, node: fx.Node) -> bool:
        """Work out the value of a node ahead of time, if that can be done."""
        if node.op == "get_attr":
            name = str(node.target)
            self._known[node], self._names[node], self._ways[node] = self._tensors[name], name, (name,)
        elif node.target is ops.decide and node.args[1] in self._decisions:
            self._known[node] = self._decisions[str(node.args[1])]
        elif node.target is ops.pick and self._picked(node) is not None:
            self._pass_on(node, cast(fx.Node, self._picked(node)))
        elif self._gathers and node.target is ops.take and self._takes_some(node):
            source, axis, index = node.args
            args = (self._operand(cast(fx.Node, source)), axis, self._operand(cast(fx.Node, index)))
            self._static[node] = self._call(node, aten.index_select.default, args)
        elif self._is_foldable(node):
            self._evaluate(node)
        else:
            return False
        return True

    def _leave(self, node: fx.Node) -> None:
        """Leave a node to be computed when the graph runs."""
        is_policy = node.op == "placeholder" and node.target == POLICY
        if node.target is ops.put or (is_policy and not self._keeps_policy):
            return
        operand = self._described_operand if node.target is getattr else self._operand
        new = self._static[node] = self.graph.node_copy(node, operand)
        new.meta = dict(node.meta)
        if node.op == "placeholder":
            self._last_read = new

    def _is_settled(self, node: fx.Node) -> bool:
        """Whether a node has a form of its own for a known decision, and knows it."""
        if node.target not in self._forms:
            return False
        at, _ = self._forms[node.target]
        return node.args[at] in self._known

    def _takes_some(self, node: fx.Node) -> bool:
        """Whether known positions are to be gathered, and not all of them."""
        source, axis, index = node.args
        given = self._known.get(source, self._static.get(source))  # pyright: ignore
        found = self._known.get(index)  # pyright: ignore
        if given is None or not isinstance(found, Tensor):
            return False
        return not isinstance(given, Tensor) or len(found) != given.shape[axis]  # pyright: ignore

    # -- exits and kernels --------------------------------------------------------------------

    def _stops(self, node: fx.Node) -> bool:
        """Whether the rows leave at an exit."""
        decision = node.all_input_nodes[-1]
        rows = self._decisions[str(decision.args[1])].rows[:1]
        return bool((rows > 0).any())

    def _left(self, node: fx.Node) -> fx.Node:
        """The one of two predictions that an exit passes on."""
        return self._operand(node.all_input_nodes[1 if self._stops(node) else 0])

    def _with_one_kernel(self, node: fx.Node) -> fx.Node:
        """A layer whose kernel is known, as an ordinary one."""
        x, *others = node.args
        args = (self._operand(x), *(self._operand(a) if isinstance(a, fx.Node) else a for a in others))  # pyright: ignore
        if node.target is synthesis.basis_linear:
            return self._call(node, aten.linear.default, args)
        named = isinstance(node.args[4], str)
        return self._call(node, aten.conv2d.padding if named else aten.conv2d.default, args)

    # -- gains --------------------------------------------------------------------------------

    def _gains(self, node: fx.Node) -> list[float]:
        """What all rows multiply the operands of a product by."""
        _, decision, weights, _ = node.args
        rows = self._decisions[str(decision.args[1])].rows[:1]  # pyright: ignore
        several = items(weights) if node.target is ops.mix else [weights]
        if not len(rows):
            return [1.0, *[0.0] * (len(several) - 1)]
        return [float(rows[0] @ rows.new_tensor(own)) for own in several]

    def _without_branch(self, skip: Skip) -> fx.Node:
        kept = self._operand(cast(fx.Node, skip.kept))
        return self._call(skip.exit, aten.clone.default, (kept,)) if skip.exit in skip.rewritten else kept

    def _multiplied(self, node: fx.Node) -> fx.Node:
        """The operands of a product that have a gain, each times it, summed."""
        gains, operands = self._gains(node), items(node.args[0])
        taken = [(x, gain) for x, gain in zip(operands, gains, strict=True) if gain] or [(operands[0], 0.0)]
        parts = [self._times(node, self._operand(x), gain) for x, gain in taken]
        if parts == [self._operand(x) for x, _ in taken[:1]] and self._is_borrowed(node, taken[0][0]):
            return self._call(node, aten.clone.default, (parts[0],))
        total = parts[0]
        for part in parts[1:]:
            total = self._call(node, aten.add.Tensor, (total, part))
        return total

    def _times(self, node: fx.Node, x: fx.Node, factor: float) -> fx.Node:
        return x if factor == 1 else self._call(node, aten.mul.Tensor, (x, factor))

    def _is_borrowed(self, node: fx.Node, operand: fx.Node) -> bool:
        """Whether a product would be the memory of something else, and is written into."""
        skip = self._products.get(node)
        owned = skip is not None and not {skip.exit, skip.last}.isdisjoint(skip.rewritten)
        return (
            skip is not None
            and owned
            and any(one.borrowed for one in skip.alternatives if one.output is operand)
        )

    def _scaled(self, node: fx.Node) -> fx.Node:
        """Times a constant: one gain per position of an axis, the same for all rows."""
        source, gains, axis, _ = node.args
        x, values = self._operand(source), self._known[gains][0]  # pyright: ignore
        if bool((values == 1).all()):
            return x
        shape = [1] * node.meta["val"].dim()
        shape[axis] = -1  # pyright: ignore
        place = next(iter(self._tensors.values())).device
        name, captured = f"{STATE_PREFIX}.scales.{node.name}", node.meta["val"].dtype
        dtype = self._dtypes.get(captured, captured)
        self.state[name] = values.detach().to(place, dtype).reshape(shape)
        self.ways[name] = ()
        self._known[node] = self.state[name]
        return self._call(node, aten.mul.Tensor, (x, self._read(name, node)))

    def _call(self, like: fx.Node, target: Any, args: tuple[Any, ...]) -> fx.Node:
        new = self.graph.call_function(target, args)
        new.meta = dict(like.meta)
        return new

    # -- state --------------------------------------------------------------------------------

    def _picked(self, node: fx.Node) -> fx.Node | None:
        """The option that a known decision names."""
        decision, options = node.args
        known = self._known.get(decision)  # pyright: ignore
        return None if known is None else items(options)[known.index]

    def _pass_on(self, node: fx.Node, value: fx.Node) -> None:
        """Let a node stand for another."""
        if value not in self._known:
            self._static[node] = self._operand(value)
            return
        self._known[node] = self._known[value]
        self._ways[node] = self._ways.get(value, ())
        self._named_after(node)

    def _named_after(self, node: fx.Node) -> None:
        """A narrowed or picked tensor goes by the name of the source's tensor."""
        named = [self._names[operand] for operand in node.all_input_nodes if operand in self._names]
        if named:
            self._names[node] = min(named, key=lambda name: name.startswith(f"{STATE_PREFIX}."))

    def _is_foldable(self, node: fx.Node) -> bool:
        if node.target is ops.decide or (node.target not in ops.FOLDABLE and node.target not in _ARITHMETIC):
            return False
        return all(operand in self._known for operand in node.all_input_nodes)

    def _evaluate(self, node: fx.Node) -> None:
        args, kwargs = map_nodes((node.args, dict(node.kwargs)), self._known.__getitem__)
        assert callable(node.target)
        with torch.no_grad():
            value = node.target(*args, **kwargs)
            self._known[node] = value.single() if isinstance(value, Kernels) else value
        self._named_after(node)
        self._ways[node] = self._way(node, args)

    def _way(self, node: fx.Node, args: tuple[Any, ...]) -> Way:
        """Where a narrowed tensor comes from; empty for other values."""
        before = self._ways.get(node.all_input_nodes[0], ()) if node.all_input_nodes else ()
        if not before or node.target not in (ops.prefix, ops.take):
            return ()
        rest = (
            str(node.target),
            *(a.cpu().numpy().tobytes() if isinstance(a, Tensor) else a for a in args[1:]),
        )
        return (*before, rest)

    def _operand(self, node: fx.Node) -> Any:
        """A node's value as an argument in the static graph: a literal, or a read of (narrowed) state."""
        if node in self._static:
            return self._static[node]
        value = self._known[node]
        if isinstance(value, Decision):  # read by what has no static form
            policy, name, *_ = node.args
            arguments = (self._static[cast(fx.Node, policy)], name)
            self._static[node] = self._call(node, ops.decide, arguments)
            return self._static[node]
        if not isinstance(value, Tensor):
            return value
        name = self._name(node, value)
        self._static[node] = self._read(name, node)
        self.state[name], self.ways[name] = value, self._ways.get(node, ())
        return self._static[node]

    def _described_operand(self, node: fx.Node) -> Any:
        """The same where only dtype or device are asked for, which any part of a tensor has."""
        if node in self._static or not isinstance(self._known[node], Tensor):
            return self._operand(node)
        read = self._read(self._own_name(node), node)
        self._described.append((read, node))
        return read

    def name_described(self) -> None:
        """Let such reads find their tensors: what else is read by that name, if anything is."""
        for read, node in self._described:
            name = str(read.target)
            if name not in self.state:
                self.state[name], self.ways[name] = self._known[node], self._ways.get(node, ())
            read.meta["val"] = self.state[name]

    def _name(self, node: fx.Node, value: Tensor) -> str:
        """The name of a tensor that the static graph reads: the source's, unless that stands for another."""
        name = self._own_name(node)
        while name in self.state and not _is_same(self.state[name], value):
            name += "_"
        return name

    def _own_name(self, node: fx.Node) -> str:
        return self._names.get(node, f"{STATE_PREFIX}.constants.{node.name}")

    def _read(self, name: str, node: fx.Node) -> fx.Node:
        """A state read after the inputs and the reads before it."""
        assert self._last_read is not None
        with self.graph.inserting_after(self._last_read):
            self._last_read = self.graph.get_attr(name)
        self._last_read.meta = {key: value for key, value in node.meta.items() if key != "val"}
        self._last_read.meta["val"] = self._known[node]
        return self._last_read


def _sink(graph: fx.Graph) -> None:
    """Compute what follows from the state alone right before its first use, not at the graph's beginning.

    All gathered weights of a network at once would be much memory, and new at every run.
    """
    derived: dict[fx.Node, None] = {}
    for node in graph.nodes:
        read = node.all_input_nodes
        known = bool(read) and all(one.op == "get_attr" or one in derived for one in read)
        if known and node.op == "call_function":
            derived[node] = None
    for node in reversed(derived):
        if node.users:
            min(node.users).prepend(node)


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two views show the same part of a tensor."""
    return (one.data_ptr(), one.shape, one.stride()) == (other.data_ptr(), other.shape, other.stride())
