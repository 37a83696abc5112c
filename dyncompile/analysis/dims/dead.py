"""Dead dims: computed, concatenated or cut away, and never read. A static network does without them.

A dim is dead when every node that takes it in either passes it on or slices it off. What is left of every
tensor must not be empty, since kernels refuse that. Dims of norms with private statistics stay: the sizes of
the copies are settled.
"""

from __future__ import annotations

from torch import fx

from dyncompile.analysis.dims.algebra import active
from dyncompile.analysis.dims.call import flat_types
from dyncompile.analysis.dims.facts import DimFacts
from dyncompile.program import Program
from dyncompile.runtime import ops
from dyncompile.torchlib import schema_of

_EFFECTS = (ops.positions, ops.put)
"""Index computations, and writes of statistics: they read no dim for its values."""
_NONE = frozenset[str]()
_CUTS = ("aten::slice", "aten::narrow", "aten::split", "aten::split_with_sizes", "aten::chunk")


def dead_dims(program: Program, facts: DimFacts) -> frozenset[str]:
    """Names of elastic dims that no node of any graph consumes."""
    live = {name for name, one in facts.elastic.items() if one.mixed}
    for mode, graph in program.graphs.items():
        names = facts.graphs[mode].elastics
        for node in graph.nodes:
            if node.op == "call_function" and node.target not in _EFFECTS and not cuts(node):
                taken = _NONE.union(*(names.get(operand.name, _NONE) for operand in node.all_input_nodes))
                live |= taken if node.target is ops.pick else taken - names.get(node.name, _NONE)
    return frozenset(name for name in facts.elastic if name not in live and _leaves_something(name, facts))


def cuts(node: fx.Node) -> bool:
    """Whether a node takes out a part of a value, or parts."""
    schema = schema_of(node.target)
    return schema is not None and schema.name in _CUTS


def _leaves_something(name: str, facts: DimFacts) -> bool:
    """Whether no tensor would become empty without this dim."""
    values = (found for graph in facts.graphs.values() for found in graph.types.values())
    tensors = [*facts.state.values(), *(dims for found in values for dims in flat_types(found))]
    return all(active(dim, {name: 0}) > 0 for dims in tensors for dim in dims)
