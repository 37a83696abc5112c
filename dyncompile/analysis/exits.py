"""What need not run for rows that leave early, or that do not, read off the graph.

    y = leave(final, early, decision)       own:  what runs for `early` and nothing else
                                            rest: what runs for `final` and nothing else

Exits nest: `final` may be what a later exit gives. Unlike bodies of branches, `rest` may hold decisions: they
are not taken for rows that have left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from dyncompile.analysis.flow import Flow
from dyncompile.analysis.skips import Condition
from dyncompile.gate import without_gates
from dyncompile.runtime import ops

STOPS, GOES_ON = (1.0, 0.0), (0.0, 1.0)
"""Weights of the conditions of an exit, whose activity has two columns: stop, and its opposite."""


@dataclass(frozen=True)
class Leave:
    """An exit: its node, who decides, its operands, and what runs for one of them alone, in order."""

    node: fx.Node
    choice: str
    final: fx.Node
    early: fx.Node
    own: tuple[fx.Node, ...]
    rest: tuple[fx.Node, ...]


def find_leaves(graph: fx.Graph, *, deciding: bool = False) -> list[Leave]:
    """All exits of a graph, in order.

    With `deciding` decisions and decision nets are work like any other: what they read is needed for them,
    and those that only `rest` asks are part of it. Without, decisions are nobody's own.
    """
    nodes = [node for node in graph.nodes if node.target is ops.leave]
    if not nodes:
        return []
    flow = Flow.of(graph, () if deciding else ops.DECISIONS)
    return [_leave(flow, node) for node in nodes]


def _leave(flow: Flow, node: fx.Node) -> Leave:
    final, early, decision = node.all_input_nodes
    own, rest = (tuple(flow.sorted(flow.exclusive(operand, node))) for operand in (early, final))
    return Leave(node, str(decision.args[1]), final, early, own, rest)


def exit_conditions(graph: fx.Graph, *, deciding: bool = False) -> Mapping[str, tuple[Condition, ...]]:
    """Node name -> when it runs: every condition must hold.

    Without `deciding`, when it lies on a row's path; with it, when anything of a row needs it.
    """
    source = graph if deciding else without_gates(graph)
    found: dict[str, tuple[Condition, ...]] = {}
    for leave in find_leaves(source, deciding=deciding):
        for nodes, weights in ((leave.own, STOPS), (leave.rest, GOES_ON)):
            for node in nodes:
                found[node.name] = (*found.get(node.name, ()), (leave.choice, weights))
    return found
