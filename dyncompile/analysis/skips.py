"""What need not run when its weight in a sum is 0, read off the graph.

    exit = kept + gain(output, decision, weights)          body: what runs for `output` and nothing else
    exit = kept + mix(outputs, decision, weights)          one body per alternative
    exit = mix(outputs, decision, weights)                 the same where nothing is kept

Bodies nest, and they hold neither decisions nor decision nets: these run for every row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from dyncompile.analysis.flow import Flow, memory_of, tensor
from dyncompile.runtime import ops
from dyncompile.torchlib import items

_RECTIFIERS = (torch.ops.aten.relu.default, torch.ops.aten.relu_.default)
_ADDS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)

Condition = tuple[str, tuple[float, ...]]
"""(choice, weights): rows run only where ``row @ weights`` is above 0."""


@dataclass(frozen=True)
class Alternative:
    """One of the outputs that a decision multiplies.

    Attributes:
        output: what the body computes.
        body: nodes that run for `output` alone, in order; none where others need it, too.
        condition: when it runs.
        borrowed: whether the memory of `output` is not the body's own.
    """

    output: fx.Node
    body: tuple[fx.Node, ...]
    condition: Condition
    borrowed: bool = False


@dataclass(frozen=True)
class Skip:
    """A sum of outputs that a decision multiplies, and of what is kept in any case.

    Attributes:
        product: the node that multiplies.
        alternatives: what it multiplies, the source's own first.
        exit: the add that reads the product; the product itself where nothing is kept.
        last: the rectifier that alone reads the sum, or `exit` without one: what execution gives at once.
        kept: the other operand of the add, all that is left of the sum without alternatives.
        alpha: factor of the product in the sum.
        rewritten: which of `exit` and `last` something writes into later.
        positive: whether `kept` is a rectifier's output, which a rectifier leaves as it is.
        dying: whether nothing reads the memory of `kept` afterwards, so that the sum may take it.
    """

    product: fx.Node
    alternatives: tuple[Alternative, ...]
    exit: fx.Node
    last: fx.Node
    kept: fx.Node | None
    alpha: float
    rewritten: frozenset[fx.Node]
    positive: bool
    dying: bool = False

    @property
    def body(self) -> tuple[fx.Node, ...]:
        """The nodes of all bodies."""
        return tuple(node for one in self.alternatives for node in one.body)

    @property
    def choice(self) -> str:
        """Who decides."""
        return self.alternatives[0].condition[0]


def find_skips(graph: fx.Graph) -> list[Skip]:
    """All places of a graph where decisions multiply what branches give, in order."""
    multiplied = [node for node in graph.nodes if node.target in (ops.gain, ops.mix)]
    if not multiplied:
        return []
    flow = Flow.of(graph, ops.DECISIONS)
    found = [skip for node in multiplied for skip in _skip(flow, node)]
    memory = memory_of(graph.nodes, _passed_on(found))
    dying = _dying(flow, memory, found)
    return [
        replace(
            skip,
            dying=skip.last in dying,
            alternatives=tuple(
                replace(one, borrowed=memory[one.output] not in one.body) for one in skip.alternatives
            ),
        )
        for skip in found
    ]


def _passed_on(skips: Sequence[Skip]) -> dict[fx.Node, fx.Node]:
    """Ends of skips -> the value from before that they may turn out to be."""
    found: dict[fx.Node, fx.Node] = {}
    for skip in skips:
        foreign = skip.kept or next((one.output for one in skip.alternatives if not one.body), None)
        if foreign is not None:
            found[skip.last] = foreign
    return found


def _dying(flow: Flow, memory: Mapping[fx.Node, fx.Node], skips: list[Skip]) -> set[fx.Node]:
    """Ends of branches after which nothing reads the memory of what was kept, and which the network made."""
    used: dict[fx.Node, list[tuple[int, int]]] = {}
    for node in memory:
        last = max((flow.order[user] for user in flow.users.get(node, ())), default=-1)
        used.setdefault(memory[node], []).append((flow.order[node], last))
    found = set[fx.Node]()
    for skip in skips:
        if skip.kept is None:
            continue
        source = memory[skip.kept]
        earlier = [last for made, last in used[source] if made < flow.order[skip.exit]]
        if source.op == "call_function" and max(earlier) <= flow.order[skip.exit]:
            found.add(skip.last)
    return found


def _skip(flow: Flow, node: fx.Node) -> Iterator[Skip]:
    """At most one; none where a gain's product is used by more than an add."""
    kept, exit = _sum_of(flow, node)
    if kept is None and node.target is ops.gain:
        return
    after = flow.uses(exit)
    last = after[0] if kept and len(after) == 1 and after[0].target in _RECTIFIERS else exit
    alpha = exit.kwargs.get("alpha", 1.0)
    yield Skip(
        product=node,
        alternatives=tuple(_alternatives(flow, node)),
        exit=exit,
        last=last,
        kept=kept,
        alpha=float(alpha) if isinstance(alpha, int | float) else 1.0,
        rewritten=frozenset(end for end in (exit, last) if end in flow.rewritten),
        positive=kept is not None and kept.target in _RECTIFIERS and kept not in flow.rewritten,
    )


def _sum_of(flow: Flow, node: fx.Node) -> tuple[fx.Node | None, fx.Node]:
    """(the value that a product is added to, the sum); (None, the product) where there is no such sum."""
    users = flow.uses(node)
    if len(users) != 1 or users[0].target not in _ADDS:
        return None, node
    exit = users[0]
    kept = exit.args[0] if exit.args[1] is node else exit.args[1]
    if not isinstance(kept, fx.Node) or kept is node:
        return None, node
    if node.target is ops.mix and not _alike(kept, exit):
        return None, node
    return kept, exit


def _alike(kept: fx.Node, exit: fx.Node) -> bool:
    """Whether a sum has the shape of what it would be without the product, and not a scaled part of it."""
    scaled = "alpha" in exit.kwargs and exit.args[0] is not kept
    return not scaled and str(list(tensor(kept).shape)) == str(list(tensor(exit).shape))


def _alternatives(flow: Flow, node: fx.Node) -> Iterator[Alternative]:
    outputs, decision, weights = node.args[:3]
    assert isinstance(decision, fx.Node)
    rows = weights if node.target is ops.mix else (weights,)
    for output, own in zip(items(outputs), items(rows), strict=True):
        body = tuple(flow.sorted(flow.exclusive(output, node)))
        yield Alternative(output, body, (str(decision.args[1]), tuple(map(float, own))))


def conditions(skips: list[Skip]) -> Mapping[str, tuple[Condition, ...]]:
    """Node name -> when it runs: every condition must hold."""
    found: dict[str, tuple[Condition, ...]] = {}
    for skip in skips:
        for one in skip.alternatives:
            for node in one.body:
                found[node.name] = (*found.get(node.name, ()), one.condition)
    return found
