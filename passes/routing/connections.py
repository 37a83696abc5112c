"""Connections: the parts of a network that alternatives may stand in for.

branch   y = kept(x) + f(x)     a residual branch; f is the connection
step     y = f(x)               what lies between two values of the trunk that a contraction reads
stage    y = f(x)               a run of the trunk at one resolution
module   y = f(x)               one call of a chosen module
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import fx

from dyncompile.analysis.dims.algebra import BATCH
from dyncompile.analysis.facts import Facts
from dyncompile.analysis.flow import Flow, op_name, tensor
from dyncompile.analysis.points import Point
from dyncompile.plan import Rejection
from dyncompile.program import MODES, Mode, Program, source_line
from dyncompile.runtime.ops import DECISIONS
from dyncompile.selection import branch_ends, point_before

KINDS = ("auto", "branches", "steps", "stages", "modules")


@dataclass(frozen=True)
class Connection:
    """A part of a network with one way in and one way out.

    Attributes:
        name: of the branch, or the module path that its contractions share.
        nodes: (entry, output, exit) in each graph, by node name; see `Mixed`.
        point: the last value up to the entry that a decision net can read.
        residual: whether the exit adds what it gives to something that is kept.
        stage: the stage in which it ends.
        inside: its nodes in the evaluation graph.
    """

    name: str
    nodes: Mapping[Mode, tuple[str, str, str]]
    point: Point
    residual: bool
    stage: int
    inside: frozenset[str]

    @property
    def entry(self) -> str:
        """The value that it starts from, in the evaluation graph."""
        return self.nodes["eval"][0]

    @property
    def output(self) -> str:
        """What it gives, in the evaluation graph."""
        return self.nodes["eval"][1]


Found = Connection | Rejection


def find_connections(kind: str, paths: Sequence[str], program: Program, facts: Facts) -> list[Found]:
    """Connections of one kind, and places that are none, in order; `paths` are the modules for "modules"."""
    finder = _Finder(program, facts)
    if kind == "auto":
        kind = "branches" if facts.regions.branches else "steps"
    if kind == "modules":
        return _apart(finder.modules(paths))
    finders = {"branches": finder.branches, "steps": finder.steps, "stages": finder.stages}
    return _apart(finders[kind]())


def _apart(found: Iterable[Found]) -> list[Found]:
    """Of connections that lie in one another the outermost; none is decided by what another may leave out."""
    found = list(found)
    connections = [one for one in found if isinstance(one, Connection)]
    reasons: dict[str, str] = {}
    for one in connections:
        for other in connections:
            inner = other.inside - {other.output}
            if one is not other and one.output in inner:
                reasons[one.name] = f"it lies inside {other.name}"
            elif one is not other and one.point.name in inner:
                reasons[one.name] = f"what could decide on it, `{one.point.name}`, lies inside {other.name}"
    return [Rejection(one.name, reasons[one.name]) if one.name in reasons else one for one in found]


class _Finder:
    def __init__(self, program: Program, facts: Facts) -> None:
        self._program, self._facts = program, facts
        self._flows = {mode: Flow.of(program.graphs[mode], DECISIONS) for mode in MODES}
        self._nodes = program.nodes["eval"]
        self._names: set[str] = set()

    # -- kinds --------------------------------------------------------------------------------

    def branches(self) -> Iterator[Found]:
        """Residual branches."""
        for refusal in self._facts.regions.refusals:
            yield Rejection(refusal.name, refusal.reason, refusal.line or "")
        for branch in self._facts.regions.branches:
            ends = branch_ends(branch, self._program, self._facts)
            point = point_before(branch, self._facts)
            if isinstance(ends, str):
                yield Rejection(branch.name, ends)
                continue
            pairs: dict[Mode, tuple[str, str, str]] = {
                mode: (entry, ends[mode][1], ends[mode][0])
                for mode, entry in self._both(branch.entry).items()
            }
            if len(pairs) < len(MODES):
                yield Rejection(branch.name, f"`{branch.entry}` has no counterpart in the training graph")
            elif point is None:
                yield Rejection(branch.name, "no value before it can be read by a decision net")
            elif reason := self._overwritten(branch.entry):
                yield Rejection(branch.name, reason)
            else:
                stage = self._facts.stage_at.get(branch.exit, 0)
                yield Connection(branch.name, pairs, point, True, stage, frozenset(branch.body))

    def steps(self) -> Iterator[Found]:
        """From each point of the trunk to the next."""
        points = self._facts.points.points
        if len(points) < 2:
            yield Rejection("steps", f"the trunk has {len(points)} values that a decision net can read")
        for first, second in pairwise(points):
            yield self._trunk(first.name, second.name)

    def stages(self) -> Iterator[Found]:
        """From the first point of each stage to the first of the next."""
        stage_at, nodes = self._facts.stage_at, self._nodes
        first: dict[int, str] = {}
        for point in self._facts.points.points:
            first.setdefault(stage_at.get(point.name, 0), point.name)
        starts = list(first.values())
        if not starts:
            yield Rejection("stages", "the network has no stage with a value to decide by")
            return
        rank = tensor(nodes[starts[-1]]).dim()
        trunk = [name for name in self._facts.regions.trunk if tensor(nodes[name]).dim() == rank]
        last = [name for name in trunk if stage_at.get(name) == stage_at.get(starts[-1])]
        for one, other in zip(starts, [*starts[1:], *last[-1:]], strict=False):
            if one != other:
                yield self._trunk(one, other)

    def modules(self, paths: Sequence[str]) -> Iterator[Found]:
        """The calls of the modules at `paths`."""
        for path in paths:
            inside = [node for node in self._program.graphs["eval"].nodes if path in _paths(node)]
            yield self._module(path, set(inside))

    def _module(self, path: str, inside: set[fx.Node]) -> Found:
        flow = self._flows["eval"]
        data = {node for node in inside if node in flow.sources}
        reads = {source for node in data for source in flow.sources[node]} - data
        gives = {node for node in data if set(flow.uses(node)) - inside}
        if len(reads) != 1 or len(gives) != 1:
            return Rejection(path, f"it reads {len(reads)} values and gives {len(gives)}, not one each")
        (entry,), (output,) = reads, gives
        return self._trunk(entry.name, output.name, path)

    # -- the trunk ----------------------------------------------------------------------------

    def _trunk(self, entry: str, output: str, name: str = "") -> Found:
        flow, nodes = self._flows["eval"], self._nodes
        inside = flow.between(nodes[entry], nodes[output])
        name = name or self._name(inside, output)
        pairs: dict[Mode, tuple[str, str, str]] = {}
        outputs = self._both(output)
        for mode, own in self._both(entry).items():
            if mode in outputs:
                pairs[mode] = own, outputs[mode], ""
        point = self._point(entry)
        reason = self._unfit(entry, output, inside)
        if len(pairs) < len(MODES):
            reason = "its ends have no counterparts in the training graph"
        if reason is not None or point is None:
            line = source_line(nodes[output])
            return Rejection(name, reason or "no value before it can be read by a decision net", line)
        stage = self._facts.stage_at.get(output, 0)
        return Connection(name, pairs, point, False, stage, frozenset(node.name for node in inside))

    def _unfit(self, entry: str, output: str, inside: set[fx.Node]) -> str | None:
        """Why a part of the trunk cannot have alternatives."""
        flow, nodes = self._flows["eval"], self._nodes
        end = nodes[output]
        if end not in inside or nodes[entry].op == "placeholder":
            return "it starts at an input, which no decision net can read"
        if not flow.contractions(inside):
            return "it holds no contraction"
        for node in inside - {end}:
            outside = [user for user in flow.uses(node) if user not in inside]
            if outside:
                return f"`{node}` inside it is also used by `{outside[0]}`"
        for name in (entry, output):
            found = self._facts.dims.graphs["eval"].types.get(name)
            if not isinstance(found, tuple) or found[:1] != ((BATCH,),):
                return f"`{name}` does not hold the samples along its first axis"
        return self._overwritten(entry)

    def _overwritten(self, entry: str) -> str | None:
        flow = self._flows["eval"]
        if self._nodes[entry] in flow.rewritten:
            return f"something writes into `{entry}` later: alternatives could not read it"
        return None

    def _point(self, entry: str) -> Point | None:
        order = self._facts.order
        before = [point for point in self._facts.points.points if order[point.name] <= order[entry]]
        return before[-1] if before else None

    def _both(self, name: str) -> dict[Mode, str]:
        partner = self._facts.points.partners.get(name)
        if partner is None:
            return {}
        return dict(zip(MODES, (partner, name), strict=True))

    def _name(self, inside: set[fx.Node], output: str) -> str:
        flow = self._flows["eval"]
        paths = [_paths(node)[-1].split(".") for node in inside if flow.contracts(node) and _paths(node)]
        shared = [part for part, *others in zip(*paths, strict=False) if all(part == o for o in others)]
        name = ".".join(shared) if shared and all(p[: len(shared)] == shared for p in paths) else output
        number = 1
        while (unique := name if number == 1 else f"{name}#{number}") in self._names:
            number += 1
        self._names.add(unique)
        return unique


def module_paths(program: Program) -> list[str]:
    """Paths of all modules that are called, in order."""
    found = (path for node in program.graphs["eval"].nodes for path in _paths(node))
    return [path for path in dict.fromkeys(found) if path]


def _paths(node: fx.Node) -> list[str]:
    """Paths of the modules that a node was traced in, outermost first."""
    stack: dict[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    return [path for path, _ in stack.values()]


_ACTIVATIONS = ("relu", "relu6", "hardtanh", "silu", "gelu", "hardswish", "leaky_relu", "elu", "mish")


def sample_shape(node: fx.Node) -> tuple[int, ...]:
    """Sizes of a value per sample."""
    return tuple(int(n) for n in tensor(node).shape[1:])


def ending(node: fx.Node, flow: Flow) -> tuple[bool, fx.Node | None]:
    """Whether a value comes out of a batch norm, and the activation behind that, through pools and views."""
    activation: fx.Node | None = None
    while node in flow.sources and not flow.contracts(node) and len(flow.sources[node]) == 1:
        if op_name(node) == "batch_norm":
            return True, activation
        if activation is None and op_name(node).rstrip("_") in _ACTIVATIONS:
            activation = node
        (node,) = flow.sources[node]
    return False, activation
