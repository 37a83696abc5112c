"""Where a network sums over an elastic dim: there, and nowhere else, masks and gains have to be applied."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import fx

from dyncompile.analysis.dims.algebra import Elastic, elastics, leaves
from dyncompile.analysis.dims.call import TensorType, Type, flat_types
from dyncompile.runtime.synthesis import synthesize


@dataclass(frozen=True)
class Sums:
    """Reads the types of one graph: nodes by name, and the dims of contractions."""

    types: Mapping[str, Type]
    contractions: Mapping[str, tuple[TensorType, ...]]

    def over(self, node: fx.Node, operand: fx.Node, axis: int) -> set[str]:
        """Names of the elastic dims in an axis of an operand that `node` sums over.

        Of two operands that are summed over the same dim only the queries of attention count: two masks in a
        row would square the decision, and the gradient of a square at zero is zero.
        """
        dims = self.dims(operand)
        own = {e.name for e in elastics(dims[axis])}
        if node.target is torch.ops.aten.scaled_dot_product_attention.default:
            return own if operand is node.args[0] and axis == len(dims) - 1 else set()
        before = _counts(self.contractions.get(node.name, ()))
        after = _counts(flat_types(self.types.get(node.name)))
        return {name for name in own if before[name] > after[name] or not after[name]}

    def operands(self, node: fx.Node, names: Collection[str]) -> Iterator[tuple[fx.Node, int, str]]:
        """(operand, axis, name) for each of the dims `names` that `node` sums over, once per dim."""
        seen = set[str]()
        for operand in node.all_input_nodes:
            for axis in range(len(self.dims(operand))):
                for name in sorted(self.over(node, operand, axis).intersection(names) - seen):
                    seen.add(name)
                    yield operand, axis, name

    def dims(self, node: fx.Node) -> TensorType:
        """The type of a data value; nothing for state, whose positions meet masked data."""
        found = self.types.get(node.name)
        is_state = node.op == "get_attr" or node.target is synthesize
        return found if isinstance(found, tuple) and not is_state else ()


def _counts(types: Iterable[TensorType]) -> Counter[str]:
    """How often each elastic dim appears, at most in one of several types."""
    found: Counter[str] = Counter()
    for dims in types:
        found |= Counter(leaf.name for dim in dims for leaf in leaves(dim) if isinstance(leaf, Elastic))
    return found
