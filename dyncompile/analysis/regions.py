"""Residual branches, trunk and stages of one captured graph, from its data flow alone.

**Branch.** An add ``exit = kept + output`` is the end of a branch if ``output`` can be left out: nothing
but the add needs it, and ``kept`` has the shape and dtype of the sum. The *body* is every node whose uses
all lead to ``output``: what need not run when the branch is skipped. It may read values from outside (an
attention mask, an encoder's output, a norm that two branches share). What the body computes and something
else uses too is not part of it: such a branch shrinks to what follows that value. A body holds at least
one contraction with a parameter: adding a position embedding or a mask is not a branch. Branches nest.

- *Identity*: ``kept`` is the entry. The body reads it, or something that it dominates, or does so with an
  earlier value of the same stream: in ``(x + attn(n)) + mlp(n)`` the second branch starts where the first
  ends.
- *Shortcut*: both operands are computed for the add alone, from one entry with no contraction on the way
  to them. The shortcut is the side with fewer contractions (then with fewer parameters). It reads one
  value, and is a projection: at most one contraction, or several with nothing but norms and pools
  between. Two sides of more are parallel main paths; ``x + (attn(n) + mlp(n))`` is therefore one branch,
  which holds both.

**Refusal.** Any other add of two values that depend on the input, with the reason. Not reported is
arithmetic: no contraction with a parameter lies between the add and its immediate dominator (rotary
embeddings, GELU), or one operand comes from an input without any (masks, embeddings). A refused add may
lie in the body of a branch.

**Trunk.** The dominators of the main output after every branch is contracted to an edge from its entry to its
exit, so that masks and encoders, which enter through bodies, do not hide the stream. Where a value that a
contraction has made meets one that none has, the stream is the former: pooling by a mask does not hide it,
either. The main output is the first one that no other output is computed from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from dyncompile.analysis.flow import Flow, dominators, tensor
from dyncompile.program import source_line


@dataclass(frozen=True)
class Branch:
    """``exit = entry + body(entry)`` or ``shortcut(entry) + body(entry)``; all but `name` are node names.

    Skipping it means: the add gives its other operand, which is `entry` where `shortcut` is empty, and
    nothing in `body` runs. `body` and `shortcut` are in topological order and hold the ``get_attr`` nodes
    of parameters and the side effects (batch counters, metadata checks) that are theirs alone. `output`
    is what is not added.
    """

    name: str
    entry: str
    exit: str
    body: tuple[str, ...]
    shortcut: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class Refusal:
    """An add that ends no removable branch: its module path and node, why, and the user's source line."""

    name: str
    node: str
    reason: str
    line: str | None


@dataclass(frozen=True)
class Regions:
    """Branches and refusals in the order of their adds, and the nodes that dominate the output, in order."""

    branches: tuple[Branch, ...]
    refusals: tuple[Refusal, ...]
    trunk: tuple[str, ...]


def find_regions(graph: fx.Graph, flow: Flow, counted: Collection[fx.Node]) -> Regions:
    """Branches, refusals and trunk of `graph`, by its flow; `counted` nodes number the rows of the batch.

    No body holds a decision: it is taken whether or not what it steers runs, and what it reads is needed.
    """
    found: dict[fx.Node, _Found] = {}
    refused: dict[fx.Node, str] = {}
    for exit in filter(flow.sources.__contains__, graph.nodes):
        if str(exit.target) in _ADDS and len(_operands(flow, exit)) == 2:
            verdict = _judge(flow, exit, found)
            if isinstance(verdict, _Found) and (reads := verdict.body.reads.intersection(counted)):
                verdict = f"it reads rows by their number in the batch: {_listed(reads)}"
            if isinstance(verdict, _Found):
                found[exit] = verdict
            elif verdict:
                refused[exit] = verdict
    names, others = _Names(), _Names()
    branches = [_branch(flow, names, exit, what) for exit, what in found.items()]
    refusals = [
        Refusal(others.new([add]), add.name, why, source_line(add) or None) for add, why in refused.items()
    ]
    return Regions(tuple(branches), tuple(refusals), tuple(node.name for node in _trunk(flow, graph, found)))


_ADDS = ("aten.add.Tensor", "aten.add_.Tensor")


def _operands(flow: Flow, exit: fx.Node) -> list[fx.Node]:
    """The different values that are added and depend on the input."""
    nodes = [operand for operand in dict.fromkeys(exit.args[:2]) if isinstance(operand, fx.Node)]
    return [operand for operand in nodes if flow.value(exit, operand) in flow.sources]


@dataclass(frozen=True)
class _Side:
    """One operand of an add: the nodes that run for it alone (none if others use it) and what these read."""

    output: fx.Node
    value: fx.Node
    members: frozenset[fx.Node]
    reads: frozenset[fx.Node]
    contractions: int
    parameters: int
    projects: bool

    @classmethod
    def of(cls, flow: Flow, output: fx.Node, exit: fx.Node) -> _Side:
        members = flow.exclusive(output, exit)
        reads = {source for node in members for source in flow.sources.get(node, ())} - members
        operands = {operand for node in members for operand in node.all_input_nodes}
        parameters = sum(tensor(operand).numel() for operand in operands if operand.op == "get_attr")
        contractions = flow.contractions(members)
        projects = contractions <= 1 or flow.projects(members)
        value = flow.value(exit, output)
        return cls(output, value, frozenset(members), frozenset(reads), contractions, parameters, projects)


@dataclass(frozen=True)
class _Found:
    entry: fx.Node
    body: _Side
    shortcut: _Side | None = None


def _judge(flow: Flow, exit: fx.Node, found: Mapping[fx.Node, _Found]) -> _Found | str | None:
    """A branch, the reason why there is none, or None for arithmetic that nobody would call a branch."""
    left, right = (_Side.of(flow, operand, exit) for operand in _operands(flow, exit))
    for kept, added in ((left, right), (right, left)):
        if any(_starts_from(flow, added, value) for value in _stream(kept.value, found)):
            return _identity(flow, exit, kept.output, added)
    short, body = sorted((left, right), key=lambda side: (side.contractions, side.parameters))
    verdict = _shortcut(flow, exit, short, body)
    return None if isinstance(verdict, str) and _arithmetic(flow, exit) else verdict


def _stream(value: fx.Node, found: Mapping[fx.Node, _Found]) -> Iterator[fx.Node]:
    """`value` and what it was before the identity branches that ended in it."""
    yield value
    while value in found and not found[value].shortcut:
        value = found[value].entry
        yield value


def _starts_from(flow: Flow, side: _Side, value: fx.Node) -> bool:
    if not side.members:
        return bool(flow.between(value, side.value))
    return any(flow.meet(value, read) is value for read in side.reads)


def _identity(flow: Flow, exit: fx.Node, kept: fx.Node, body: _Side) -> _Found | str | None:
    if not body.contractions and not flow.contractions(flow.between(flow.value(exit, kept), body.value)):
        return None
    return _unusable(flow, exit, body) or _unlike(exit, kept) or _Found(kept, body)


def _shortcut(flow: Flow, exit: fx.Node, short: _Side, body: _Side) -> _Found | str:
    for side, other in ((short, body), (body, short)):
        if not side.members:
            shared = _also_used(flow, side.output, {exit})
            return f"{shared}, and `{other.output}` does not start from it: two streams meet"
    if reason := _unusable(flow, exit, body):
        return reason
    entry = _common_entry(flow, short, body)
    if entry is None:
        return f"its sides start from different values: {_listed(short.reads)} and {_listed(body.reads)}"
    if not short.projects:
        counts = f"{short.contractions} and {body.contractions} contractions"
        return f"its sides are parallel main paths of {counts}: neither is a shortcut"
    if (short.contractions, short.parameters) == (body.contractions, body.parameters):
        return "its sides have equally many contractions and parameters: neither is the shortcut of the other"
    return _unlike(exit, short.output) or _Found(entry, body, short)


def _common_entry(flow: Flow, short: _Side, body: _Side) -> fx.Node | None:
    """The nearest value that both sides start from: at most norms, activations and pools lie between."""
    if len(short.reads) != 1:
        return None
    (start,) = short.reads
    entries: list[fx.Node] = []
    for read in body.reads:
        entry = flow.meet(read, start)
        if entry and not flow.contractions(flow.between(entry, read) | flow.between(entry, start)):
            entries.append(entry)
    return max(entries, key=lambda entry: flow.order[entry], default=None)


def _arithmetic(flow: Flow, exit: fx.Node) -> bool:
    above = flow.dominator[exit]
    light = [not flow.contractions(flow.between(above, operand)) for operand in flow.sources[exit]]
    return all(light) or (any(light) and (above is None or above.op == "placeholder"))


def _unusable(flow: Flow, exit: fx.Node, body: _Side) -> str | None:
    """Why leaving out `body` would save nothing, or take away what others need."""
    if not body.members:
        return f"what it adds is needed elsewhere: {_also_used(flow, body.output, {exit})}"
    if not body.contractions:
        last = max(body.reads, key=lambda read: flow.order[read])
        return f"no contraction runs for this branch alone: {_also_used(flow, last, body.members)}"
    return None


def _also_used(flow: Flow, node: fx.Node, known: Collection[fx.Node]) -> str:
    users = [user for user in flow.users[node] if user not in known]
    return f"`{node}` is also used by {_listed(users)}" if users else f"`{node}` is an input"


def _listed(nodes: Collection[fx.Node]) -> str:
    shown = ", ".join(sorted(f"`{node}`" for node in sorted(nodes)[:3]))
    return shown if len(nodes) <= 3 else f"{shown} and {len(nodes) - 3} more"


def _unlike(exit: fx.Node, kept: fx.Node) -> str | None:
    """Why `kept` alone cannot stand for the sum."""
    alpha = exit.kwargs.get("alpha", 1)
    if alpha != 1 and kept is exit.args[1]:
        return f"`{kept}`, which would remain, enters scaled by {alpha}"
    one, both = tensor(kept), tensor(exit)
    # Symbolic sizes are those of the batch; two inputs have two symbols for the same one.
    grows = any(_is_one(n) and not _is_one(m) for n, m in zip(one.shape, both.shape, strict=False))
    if grows or one.ndim != both.ndim or one.dtype != both.dtype:
        return f"`{kept}`, which would remain, is {_kind(one)}, but the sum is {_kind(both)}"
    return None


def _is_one(size: int | torch.SymInt) -> bool:
    return isinstance(size, int) and size == 1


def _kind(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')}[{', '.join(map(str, value.shape))}]"


class _Names:
    """Unique names: the innermost common module path, and ``#2`` and so on from its second use on."""

    def __init__(self) -> None:
        self._used: Counter[str] = Counter()

    def new(self, nodes: Iterable[fx.Node]) -> str:
        paths = [_module_path(node).split(".") for node in nodes]
        levels = [set(level) for level in zip(*paths, strict=False)]
        depth = next((depth for depth, parts in enumerate(levels) if len(parts) > 1), len(levels))
        name = ".".join(paths[0][:depth]) or "model"
        self._used[name] += 1
        return name if self._used[name] == 1 else f"{name}#{self._used[name]}"


def _module_path(node: fx.Node) -> str:
    return next(reversed((node.meta.get("nn_module_stack") or {"": ("",)}).values()))[0]


def _branch(flow: Flow, names: _Names, exit: fx.Node, found: _Found) -> Branch:
    body = flow.sorted(found.body.members)
    shortcut = flow.sorted(found.shortcut.members) if found.shortcut else []
    return Branch(
        name=names.new(filter(flow.contracts, body)),
        entry=found.entry.name,
        exit=exit.name,
        body=tuple(node.name for node in body),
        shortcut=tuple(node.name for node in shortcut),
        output=found.body.output.name,
    )


def _trunk(flow: Flow, graph: fx.Graph, found: Mapping[fx.Node, _Found]) -> list[fx.Node]:
    sides = [side for what in found.values() for side in (what.body, what.shortcut) if side]
    inside = frozenset[fx.Node]().union(*(side.members for side in sides))
    entries = {exit: [flow.value(exit, what.entry)] for exit, what in found.items()}
    deep = _deep(flow)
    contracted = {
        node: entries.get(node) or [one for one in read if one in deep] or read
        for node, read in flow.sources.items()
        if node not in inside
    }
    above = dominators(contracted)
    trunk: list[fx.Node] = []
    node = _main_output(flow, graph)
    while node is not None:
        trunk.append(node)
        node = above[node]
    return trunk[::-1]


def _deep(flow: Flow) -> set[fx.Node]:
    """What a contraction with a parameter has made, or something that depends on such a value."""
    deep = set[fx.Node]()
    for node, read in flow.sources.items():
        if flow.contracts(node) or not deep.isdisjoint(read):
            deep.add(node)
    return deep


def _main_output(flow: Flow, graph: fx.Graph) -> fx.Node | None:
    values = [value for value in graph.output_node().all_input_nodes if value in flow.sources]
    behind = {
        node for value in values for source in flow.sources[value] for node in flow.between(None, source)
    }
    return next((value for value in values if value not in behind), None)
