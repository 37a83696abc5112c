"""Multiply-accumulates per node, as polynomials in the sizes of elastic dims.

A contraction costs the product of its dims; a concatenated dim makes it a sum of products. The batch is left
out, so numbers are per sample; work that does not depend on the batch counts once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import fx

from dyncompile.analysis.dims.algebra import BATCH, Dim, Elastic, Factor, Sum, Widths, factor_size
from dyncompile.analysis.dims.call import bind
from dyncompile.analysis.dims.facts import GraphDims
from dyncompile.analysis.flow import CONTRACTIONS, op_name, writers_of
from dyncompile.runtime.ops import DECISIONS
from dyncompile.runtime.synthesis import synthesize
from dyncompile.torchlib import by_name, items, schema_of

Polynomial = Mapping[tuple[Elastic, ...], int]
"""Monomial (elastic dims with repetition, sorted by name) -> coefficient."""


@dataclass(frozen=True, slots=True)
class MacsFacts:
    """Cost of a graph.

    Attributes:
        nodes: node name -> MACs per sample, nodes on the data path.
        decisions: the same for nodes that only decisions read, and for the synthesis of kernels: it is done
            since something was decided, and a static network with the kernel does not do it.
        unmodeled: operators with parameters whose cost is unknown, by node; not in any sum.
    """

    nodes: Mapping[str, Polynomial]
    decisions: Mapping[str, Polynomial]
    unmodeled: Mapping[str, str]

    @property
    def path(self) -> Polynomial:
        """MACs of the data path per sample."""
        return add(self.nodes.values())

    @property
    def deciding(self) -> Polynomial:
        """MACs of the decision nets per sample."""
        return add(self.decisions.values())


def macs_facts(graph: fx.Graph, dims: GraphDims) -> MacsFacts:
    """Cost of every node of a typed graph."""
    on_path = path_nodes(graph)
    costs = {name: add(map(product, found)) for name, found in dims.contractions.items()}
    named = by_name(graph)
    return MacsFacts(
        nodes={name: cost for name, cost in costs.items() if name in on_path},
        decisions={name: cost for name, cost in costs.items() if name not in on_path},
        unmodeled={name: str(named[name].target) for name in dims.unmodeled if _multiplies(named[name])},
    )


def path_nodes(graph: fx.Graph, *, kernels: bool = False) -> set[str]:
    """Nodes that the output depends on through data, not through a decision.

    Kernels put together per sample are state; with `kernels` what they are put together from counts, too.
    """
    writers, found = writers_of(graph), set[str]()
    todo = [node for node in graph.nodes if node.op == "output"]
    while todo:
        node = todo.pop()
        if node.name in found or (node.target is synthesize and not kernels):
            continue
        found.add(node.name)
        if node.target not in DECISIONS:
            todo += (*node.all_input_nodes, *writers[node].values())
    return found


def product(dims: Iterable[Dim]) -> Polynomial:
    """The product of dims, expanded."""
    total: Polynomial = {(): 1}
    for dim in dims:
        for factor in dim:
            if factor != BATCH:
                total = _times(total, _factor(factor))
    return total


def _factor(factor: Factor) -> Polynomial:
    if isinstance(factor, Elastic):
        return {(factor,): 1}
    if isinstance(factor, Sum):
        return add(product([segment]) for segment in factor.segments)
    return {(): factor_size(factor)}


def _times(a: Polynomial, b: Polynomial) -> Polynomial:
    out: Counter[tuple[Elastic, ...]] = Counter()
    for left, m in a.items():
        for right, n in b.items():
            out[tuple(sorted((*left, *right), key=lambda e: e.name))] += m * n
    return out


def add(parts: Iterable[Polynomial]) -> Polynomial:
    """Sum of polynomials."""
    out: Counter[tuple[Elastic, ...]] = Counter()
    for part in parts:
        for monomial, n in part.items():
            out[monomial] += n
    return out


def evaluate(polynomial: Polynomial, widths: Widths) -> int:
    """Value at the given widths; dims that are not named are at full size."""
    total = 0
    for monomial, coefficient in polynomial.items():
        for elastic in monomial:
            coefficient *= widths.get(elastic.name, elastic.size)
        total += coefficient
    return total


def covered(polynomial: Polynomial, names: Iterable[str]) -> int:
    """The part of the full value that depends on any of the named dims."""
    wanted = set(names)
    return evaluate({m: n for m, n in polynomial.items() if any(e.name in wanted for e in m)}, {})


def _multiplies(node: fx.Node) -> bool:
    """Whether a node may cost MACs: a known contraction, or one that reads a parameter directly (an LSTM)."""
    if op_name(node) in CONTRACTIONS:
        return True
    arguments = bind(node) if schema_of(node.target) is not None else {}
    flat = [entry for value in arguments.values() for entry in items(value)]
    return any(isinstance(entry, fx.Node) and entry.op == "get_attr" for entry in flat)
