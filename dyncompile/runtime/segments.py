"""A graph cut at its decisions, so that rows can part at each and meet again where nothing tells them apart.

A segment starts with decisions and runs up to the next one. Values that cross a cut are passed on; what
depends on parameters, decisions and sizes alone is computed again where it is needed. A choice stays *alive*
as long as later work or a value that crosses depends on it: rows that differ in none of the choices alive at
a cut go on together.

Only choices that size something make rows part, and exits: rows that stop at one get the outputs through an
outlet, which computes what nothing but the early prediction needs, and they pass no later segment. Gains are
numbers per row: they are decided on the way, and a branch that some rows skip becomes a function of the rows
that do not (`dyncompile.runtime.branches`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from dyncompile.analysis.dims.algebra import BATCH, elastics
from dyncompile.analysis.dims.call import Type, flat_types
from dyncompile.analysis.exits import Leave, find_leaves
from dyncompile.analysis.flow import carries_tensor
from dyncompile.analysis.ordinals import ordinals
from dyncompile.analysis.skips import Alternative, Skip, find_skips
from dyncompile.program import POLICY, Program
from dyncompile.runtime import ops
from dyncompile.runtime.blocks import widest_row
from dyncompile.runtime.branches import Branch, Join
from dyncompile.runtime.compiled import Compiler, GraphForward, compile_graph
from dyncompile.runtime.grouping import Channels, Grouping
from dyncompile.runtime.rows import batch_axis, elements_per_row, has_rows
from dyncompile.runtime.segment import Outlet, Segment

aten = torch.ops.aten


def cut(
    graph: fx.Graph,
    types: Mapping[str, Type],
    program: Program,
    channels: Channels | None = None,
    compiler: Compiler = compile_graph,
    *,
    blocks: bool = False,
) -> list[Segment]:
    """The segments of a program's graph; a single one where nothing is decided after the inputs.

    With `channels`, rows that keep different ones part or stay together, whatever costs less. With `blocks`,
    what precedes the first branch is a segment of its own, which may run in blocks of rows.
    """
    return _Cutter(graph, types, program, channels, compiler, blocks=blocks).segments()


class _Cutter:
    def __init__(
        self,
        graph: fx.Graph,
        types: Mapping[str, Type],
        program: Program,
        channels: Channels | None,
        compiler: Compiler,
        *,
        blocks: bool,
    ) -> None:
        self._graph, self.types, self._sized = graph, types, program.sized
        self._ordinals = ordinals(graph)
        self.state, self.channels, self.compiler = program.state, channels, compiler
        self._parting = parting(graph)
        self._home: dict[fx.Node, int] = {}
        self._read: dict[fx.Node, set[fx.Node]] = {}
        self._decisions: list[list[fx.Node]] = [[]]
        leaves = find_leaves(graph)
        self._leaves = {leave.choice: leave for leave in leaves}
        self._early = {node for leave in leaves for node in (*leave.own, leave.node)}
        skips = find_skips(graph)
        self.ends = {skip.last: skip for skip in skips}
        self._owner: dict[fx.Node, Skip] = {}
        for skip in sorted(skips, key=lambda skip: -len(skip.body)):  # the innermost comes last
            self._owner.update(dict.fromkeys({*skip.body, skip.product, skip.exit} - {skip.last}, skip))
        self._trunk, self._blocks = -1, blocks
        branching = {one.condition[0] for skip in skips for one in skip.alternatives}
        self._place(branching if blocks else set[str]())
        names = range(len(self._decisions))
        self._pieces = [_Piece(self, self.nodes_of(i), f"segment {i}") for i in names]
        self._outlets = [self._outlets_of(i) for i in names]

    def _place(self, branching: set[str]) -> None:
        """Give every node its segment: decisions with no work between them are taken together.

        At the first choice in `branching` another segment starts, too, though no rows part there.
        """
        worked = False
        for node in self._graph.nodes:
            if worked and node.target is ops.decide and node.args[1] in branching:
                self._decisions.append([])
                self._trunk, worked, branching = len(self._decisions) - 2, False, set[str]()
            if node.target is ops.decide and node.args[1] in self._parting:
                if worked:
                    self._decisions.append([])
                    worked = False
                self._decisions[-1].append(node)
            elif node.op != "placeholder" and node not in self._early and not self.is_light(node):
                worked = True
            self._home[node] = len(self._decisions) - 1

    def is_light(self, node: fx.Node) -> bool:
        """Whether a node is computed again where it is needed.

        State, decisions, sizes, narrowed state, numbers of rows: another group has others.
        """
        if node.target is ops.decide:
            return not self.is_taken_here(node)
        if node.op == "get_attr" or node.target in ops.FOLDABLE or node in self._ordinals:
            return True
        return node.op == "call_function" and not carries_tensor(node) and node.target is not ops.put

    def is_common(self, node: fx.Node, body: frozenset[fx.Node]) -> bool:
        """Whether positions that a node finds active are read outside a body, too: all rows count then."""
        return node.target is ops.active and not self._readers(node) <= body

    def _readers(self, node: fx.Node) -> set[fx.Node]:
        """What computes with a light node, through others that are light."""
        if node not in self._read:
            heavy = {user for user in node.users if not self.is_light(user)}
            light = (self._readers(user) for user in node.users if self.is_light(user))
            self._read[node] = heavy.union(*light)
        return self._read[node]

    def is_taken_here(self, node: fx.Node) -> bool:
        """Whether a node asks a decision net without making rows part: that happens while a segment runs."""
        return node.target is ops.decide and len(node.args) > 2 and node.args[1] not in self._parting

    def home(self, node: fx.Node) -> int:
        """The segment that computes a node; inputs come before the first."""
        while node in self._owner:
            node = self._owner[node].last
        return -1 if node.op == "placeholder" else self._home[node]

    def is_batch_size(self, node: fx.Node) -> bool:
        """Whether a node reads the number of rows from a tensor."""
        if node.target is not aten.sym_size.int:
            return False
        source, axis = node.args
        found = self.types.get(source.name) if isinstance(source, fx.Node) else None
        return isinstance(found, tuple) and isinstance(axis, int) and found[axis] == (BATCH,)

    def nodes_of(self, index: int) -> list[fx.Node]:
        """The nodes that a segment computes whether or not something asks for them, bodies left out."""
        heavy = [n for n in self._graph.nodes if n.op != "placeholder" and not self.is_light(n)]
        mine = [node for node in heavy if node not in self._owner and self._home[node] == index]
        return [node for node in mine if node not in self._early]

    def _outlets_of(self, index: int) -> dict[str, _Piece]:
        """For each exit that is decided at a segment's start, what its rows still need."""
        choices = [str(node.args[1]) for node in self._decisions[index]]
        return {
            choice: _Piece(
                self, self._needed(self._leaves[choice], index), f"outlet {choice}", self._leaves[choice]
            )
            for choice in choices
            if choice in self._leaves
        }

    def _needed(self, leave: Leave, index: int) -> list[fx.Node]:
        """What an early prediction is computed from and no earlier segment has computed, and the output."""
        wanted, todo = set(leave.own), [leave.early, *leave.own]
        while todo:
            node = todo.pop()
            if node.op == "placeholder" or self.is_light(node):
                continue
            if node in self._early or self.home(node) >= index:
                wanted.add(node)
                todo += [other for other in node.all_input_nodes if other not in wanted]
        heavy = [
            n for n in self._graph.nodes if n in wanted and n not in self._owner and not self.is_light(n)
        ]
        return [*heavy, self._graph.output_node()]

    def body_of(self, skip: Skip, one: Alternative) -> list[fx.Node]:
        """The nodes that run in the body of an alternative and in none inside it."""
        return [node for node in one.body if not self.is_light(node) and self._owner[node] is skip]

    def segments(self) -> list[Segment]:
        """All segments, compiled."""
        logits = [
            {str(d.args[1]): d.all_input_nodes[1] for d in decisions if len(d.args) > 2}
            for decisions in self._decisions
        ]
        asked = [
            {*found.values(), *(node for piece in (own, *outlets.values()) for node in piece.inputs)}
            for own, outlets, found in zip(self._pieces, self._outlets, logits, strict=True)
        ]
        out: list[Segment] = []
        for index, piece in enumerate(self._pieces):
            later = set[Any]().union(*asked[index + 1 :])
            gives = [node for node in self.nodes_of(index) if node in later]
            live = {n for n in set[Any]().union(*asked[index:]) if self.home(n) < index}
            out.append(
                Segment(
                    choices=tuple(str(d.args[1]) for d in self._decisions[index]),
                    logits={choice: str(node) for choice, node in logits[index].items()},
                    takes=tuple(node.name for node in piece.inputs),
                    gives=tuple(node.name for node in gives),
                    alive=self._alive(index, live),
                    live=frozenset(node.name for node in live),
                    forward=piece.compiled(gives),
                    outlets={
                        choice: Outlet(tuple(node.name for node in one.inputs), one.compiled([]))
                        for choice, one in self._outlets[index].items()
                    },
                    row_bytes=self._row_bytes(index),
                )
            )
        return out

    def _row_bytes(self, index: int) -> int:
        """See `Segment`: only what precedes the first branch runs in blocks, branches part rows anyway."""
        piece = self._pieces[index]
        return self.row_bytes(self.nodes_of(index), piece.inputs) if index == self._trunk else 0

    def row_bytes(self, nodes: Sequence[fx.Node], inputs: Collection[fx.Node]) -> int:
        """Bytes of the widest value of one row where nodes may run in blocks of rows, else 0."""
        if not self._blocks or any(node in self.ends or self.is_taken_here(node) for node in nodes):
            return 0
        return widest_row(nodes, inputs, self.types, self.state)

    def _alive(self, index: int, live: set[fx.Node]) -> frozenset[str]:
        earlier = {str(d.args[1]) for decisions in self._decisions[:index] for d in decisions}
        later = [*self._pieces[index:], *(one for found in self._outlets[index:] for one in found.values())]
        used = {name for piece in later for name in piece.decisions}
        for node in live:
            found = self.types.get(node.name)
            used |= {self._sized[e].choice for e in _moving(found) if e in self._sized}
            if not has_rows(found):
                used |= _decided_by(node)
        return frozenset(used & earlier)


class _Piece:
    """The graph of one segment, or of the body of a branch, or of an outlet, while it is built.

    At the exit `left` its rows stop; at others they go on. `body` is all that runs in the body of a branch.
    """

    def __init__(
        self,
        cutter: _Cutter,
        nodes: Sequence[fx.Node],
        name: str,
        left: Leave | None = None,
        body: frozenset[fx.Node] | None = None,
    ) -> None:
        self._cutter, self._name, self._left, self._body = cutter, name, left, body
        self._graph = fx.Graph()
        self._policy = self._graph.placeholder(POLICY)
        self._env: dict[fx.Node, fx.Node] = {}
        self._last_input = self._policy
        self.inputs: dict[fx.Node, fx.Node] = {}
        self.decisions: set[str] = set()
        for node in nodes:
            self._copy(node)

    def _operand(self, node: fx.Node) -> fx.Node:
        if node not in self._env:
            if node.op == "placeholder" and node.target == POLICY:
                return self._policy
            if node.target is ops.leave:
                stops = self._left is not None and node is self._left.node
                self._env[node] = self._operand(node.all_input_nodes[1 if stops else 0])
                return self._env[node]
            if node.target is ops.decide:
                return self._decision(node)
            if self._cutter.is_batch_size(node):
                self._env[node] = self._graph.call_function(ops.row_count, (self._policy,))
            elif self._cutter.is_light(node) and not self._is_given(node):
                self._copy(node)
            else:
                self._take(node)
        return self._env[node]

    def _is_given(self, node: fx.Node) -> bool:
        return self._body is not None and self._cutter.is_common(node, self._body)

    def _copy(self, node: fx.Node) -> None:
        if node in self._cutter.ends:
            self._join(self._cutter.ends[node])
            return
        if node.target is ops.decide:
            self._decision(node, *map(self._operand, node.all_input_nodes[1:]))
            return
        for operand in node.all_input_nodes:
            self._operand(operand)
        new = self._env[node] = self._graph.node_copy(node, self._env.__getitem__)
        if node.target is ops.active and self._cutter.channels is not None:
            new.args = (*new.args, self._cutter.channels.pays(str(node.args[1])))

    def _decision(self, node: fx.Node, *features: fx.Node) -> fx.Node:
        """A decision: taken now, from what its net says, or known by name."""
        self.decisions.add(str(node.args[1]))
        arguments = (self._policy, node.args[1], *features)
        self._env[node] = self._graph.call_function(ops.decide, arguments)
        return self._env[node]

    def _join(self, skip: Skip) -> None:
        """The sum where branches end, as a call that runs each for the rows that need it."""
        bodies = [self._body_of(skip, one) for one in skip.alternatives]
        taken = list(dict.fromkeys(node for body in bodies for node in body.inputs))
        types = self._cutter.types
        branches = [
            Branch(
                body=body.compiled([one.output]),
                weights=one.condition[1],
                takes=tuple(taken.index(node) for node in body.inputs),
                borrowed=one.borrowed,
                grouping=self._grouping(skip, one, body),
                row_bytes=self._cutter.row_bytes(self._cutter.body_of(skip, one), body.inputs),
            )
            for body, one in zip(bodies, skip.alternatives, strict=True)
        ]
        join = Join(
            branches=tuple(branches),
            alpha=skip.alpha,
            in_place=skip.exit.target is aten.add_.Tensor and skip.exit.args[0] is skip.product,
            rectified=skip.last is not skip.exit,
            owned=skip.last in skip.rewritten,
            positive=skip.positive,
            dying=skip.dying,
            axis=batch_axis(types.get((skip.kept or skip.product).name)),
            takes=tuple(types.get(node.name) for node in taken),
        )
        decision = next(n for n in skip.product.all_input_nodes if n.target is ops.decide)
        kept = None if skip.kept is None else self._operand(skip.kept)
        operands = [self._operand(node) for node in (decision, *taken)]
        arguments = (self._policy, operands[0], kept, *operands[1:])
        new = self._graph.call_function(join.named(f"join_{skip.exit}"), arguments)
        new.meta = dict(skip.last.meta)
        self._env[skip.last] = new

    def _body_of(self, skip: Skip, one: Alternative) -> _Piece:
        own, name = self._cutter.body_of(skip, one), f"body of {one.output}"
        body = _Piece(self._cutter, own, name, body=frozenset(one.body))
        body.needs(one.output)
        self.decisions |= body.decisions
        return body

    def _grouping(self, skip: Skip, one: Alternative, body: _Piece) -> Grouping | None:
        """How rows of a body part by the channels that they keep."""
        if self._cutter.channels is None:
            return None
        nodes = {node.name for node in body._env}
        calls = len(self._cutter.body_of(skip, one))
        moved = sum(
            elements_per_row(self._cutter.types.get(node.name)) for node in (*body.inputs, one.output)
        )
        return self._cutter.channels.grouping(nodes, calls, moved)

    def needs(self, node: fx.Node) -> None:
        """See that a value is there, if only as an input."""
        self._operand(node)

    def _take(self, node: fx.Node) -> None:
        with self._graph.inserting_after(self._last_input):
            self._last_input = self._graph.placeholder(node.name)
        self._last_input.meta = dict(node.meta)
        self.inputs[node] = self._env[node] = self._last_input

    def compiled(self, gives: Sequence[fx.Node]) -> GraphForward:
        """A function of the policy and the piece's inputs; the last segment gives the graph's outputs."""
        if not any(node.op == "output" for node in self._graph.nodes):
            self._graph.output(tuple(self._env[node] for node in gives))
        self._graph.lint()
        return self._cutter.compiler(self._graph, self._name, self._cutter.state)


def parting(graph: fx.Graph) -> set[str]:
    """Choices that size something, and exits: rows that differ in one of them cannot run together."""
    deciding = {ops.extent: 0, ops.pick: 0, ops.leave: 2}
    sizing = (node.args[deciding[node.target]] for node in graph.nodes if node.target in deciding)
    return {str(decision.args[1]) for decision in sizing if isinstance(decision, fx.Node)}


def _moving(found: Type) -> set[str]:
    return {elastic.name for dims in flat_types(found) for dim in dims for elastic in elastics(dim)}


def _decided_by(node: fx.Node) -> set[str]:
    """Choices that a value without rows was computed from."""
    found, seen, todo = set[str](), set[fx.Node](), [node]
    while todo:
        here = todo.pop()
        if here.target is ops.decide:
            found.add(str(here.args[1]))
        elif here not in seen:
            seen.add(here)
            todo += here.all_input_nodes
    return found
