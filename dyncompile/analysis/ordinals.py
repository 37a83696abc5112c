"""Values that count the rows of a batch: ``arange(batch)``, and what is computed of it.

In a group of rows each row has another number than in the batch. What is made of such numbers alone is made
anew for every group. What mixes them with data (``neighbors + arange(batch) * points``) cannot be: rows stay
together while it is alive.
"""

from __future__ import annotations

from torch import fx

from dyncompile.analysis.flow import carries_tensor, op_name, tensor
from dyncompile.torchlib import draws_random_numbers, is_symbolic, schema_of

_COUNTS = frozenset(("arange", "eye", "linspace"))
_INDEXES = frozenset(
    ("index", "index_select", "gather", "embedding", "take_along_dim", "index_put", "index_put_", "scatter")
)
"""Operators of which an operand says where to read, or to write: its numbers are not in what they give."""


def ordinals(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that are computed of numbers of rows and constants alone."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if _counts_rows(node) or _is_made_of(node, found):
            found.add(node)
    return found


def _counts_rows(node: fx.Node) -> bool:
    """Whether a node counts as far as the batch is long; lengths that do not follow it are known."""
    return op_name(node) in _COUNTS and any(map(is_symbolic, tensor(node).shape))


def _is_made_of(node: fx.Node, found: set[fx.Node]) -> bool:
    read = _operands(node)
    if node.op != "call_function" or found.isdisjoint(read) or draws_random_numbers(node.target):
        return False
    schema = schema_of(node.target)
    pure = schema is None or not schema.is_mutable
    return pure and all(one in found or one.op == "get_attr" for one in read)


def numbered(graph: fx.Graph) -> set[fx.Node]:
    """Nodes whose values mix numbers of rows with data."""
    own, found = ordinals(graph), set[fx.Node]()
    for node in graph.nodes:
        if node.op == "call_function" and node not in own and not (own | found).isdisjoint(_values(node)):
            found.add(node)
    return found


def _values(node: fx.Node) -> list[fx.Node]:
    """The operands of which values are taken."""
    return _operands(node)[:1] if op_name(node) in _INDEXES else _operands(node)


def _operands(node: fx.Node) -> list[fx.Node]:
    return [one for one in node.all_input_nodes if carries_tensor(one)]
