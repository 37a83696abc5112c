"""What need not run when the gain of a branch is 0, read off the graph.

    exit = kept + gain(output, decision, weights)          body: what runs for `output` and nothing else

Bodies nest, and they hold neither decisions nor decision nets: these run for every row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import fx

from dyncompile.analysis.flow import Flow, memory_of
from dyncompile.runtime import ops

_RECTIFIERS = (torch.ops.aten.relu.default, torch.ops.aten.relu_.default)

Condition = tuple[str, tuple[float, ...]]
"""(choice, weights): rows run only where ``row @ weights`` is above 0."""


@dataclass(frozen=True)
class Skip:
    """A branch whose output a decision multiplies.

    Attributes:
        gain: the node that multiplies.
        exit: the add that reads it.
        last: the rectifier that alone reads the sum, or `exit` without one: what execution gives at once.
        kept: its other operand, all that is left of the sum without the branch.
        output: what the body computes.
        body: nodes that run for `output` alone, in order.
        alpha: factor of the branch in the sum.
        rewritten: which of `exit` and `last` something writes into later.
        positive: whether `kept` is a rectifier's output, which a rectifier leaves as it is.
        dying: whether nothing reads the memory of `kept` afterwards, so that the sum may take it.
        condition: when it runs.
    """

    gain: fx.Node
    exit: fx.Node
    last: fx.Node
    kept: fx.Node
    output: fx.Node
    body: tuple[fx.Node, ...]
    alpha: float
    rewritten: frozenset[fx.Node]
    positive: bool
    condition: Condition
    dying: bool = False


def find_skips(graph: fx.Graph) -> list[Skip]:
    """All branches of a graph that decisions multiply, in order."""
    multiplied = [node for node in graph.nodes if node.target is ops.gain]
    if not multiplied:
        return []
    flow = Flow.of(graph, ops.DECISIONS)
    found = [skip for node in multiplied for skip in _skip(flow, node)]
    dying = _dying(flow, graph, found)
    return [replace(skip, dying=skip.last in dying) for skip in found]


def _dying(flow: Flow, graph: fx.Graph, skips: list[Skip]) -> set[fx.Node]:
    """Ends of branches after which nothing reads the memory of what was kept, and which the network made."""
    memory = memory_of(graph.nodes, {skip.last: skip.kept for skip in skips})
    used: dict[fx.Node, list[tuple[int, int]]] = {}
    for node in graph.nodes:
        last = max((flow.order[user] for user in flow.users.get(node, ())), default=-1)
        used.setdefault(memory[node], []).append((flow.order[node], last))
    found = set[fx.Node]()
    for skip in skips:
        source = memory[skip.kept]
        earlier = [last for made, last in used[source] if made < flow.order[skip.exit]]
        if source.op == "call_function" and max(earlier) <= flow.order[skip.exit]:
            found.add(skip.last)
    return found


def _skip(flow: Flow, node: fx.Node) -> Iterator[Skip]:
    """At most one; none where the product is used by more than an add."""
    output, decision, weights = node.args[:3]
    users = flow.uses(node)
    if len(users) != 1 or len(operands := users[0].args[:2]) != 2:
        return
    assert isinstance(output, fx.Node)
    assert isinstance(decision, fx.Node)
    kept = operands[0] if operands[1] is node else operands[1]
    assert isinstance(kept, fx.Node)
    alpha = users[0].kwargs.get("alpha", 1.0)
    exit = users[0]
    after = flow.uses(exit)
    last = after[0] if len(after) == 1 and after[0].target in _RECTIFIERS else exit
    yield Skip(
        gain=node,
        exit=exit,
        last=last,
        kept=kept,
        output=output,
        body=tuple(flow.sorted(flow.exclusive(output, node))),
        alpha=float(alpha) if isinstance(alpha, int | float) else 1.0,
        rewritten=frozenset(end for end in (exit, last) if end in flow.rewritten),
        positive=kept.target in _RECTIFIERS and kept not in flow.rewritten,
        condition=(str(decision.args[1]), tuple(map(float, weights))),  # pyright: ignore
    )


def conditions(skips: list[Skip]) -> Mapping[str, tuple[Condition, ...]]:
    """Node name -> when it runs: every condition must hold."""
    found: dict[str, tuple[Condition, ...]] = {}
    for skip in skips:
        for node in skip.body:
            found[node.name] = (*found.get(node.name, ()), skip.condition)
    return found
