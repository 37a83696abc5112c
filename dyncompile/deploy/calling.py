"""Give a static graph the calling convention of the model that it came from."""

from __future__ import annotations

from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

from dyncompile.signature import Signature
from dyncompile.torchlib import python_calling


def adopt_signature(graph: fx.Graph, signature: Signature) -> None:
    """Make `graph` take the source's arguments by position or name, and return the source's output structure.

    Arguments that hold no tensor were constants of the trace: they are no inputs of a static network.
    """
    flat = list(range(len(signature.leaves)))
    named: dict[str, Any] = pytree.tree_unflatten(flat, signature.structure)
    kept = {name: value for name, value in named.items() if has_tensor(value, signature)}
    wanted: set[int] = set(pytree.tree_leaves(list(kept.values())))
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for position, node in enumerate(inputs):
        if position not in wanted:
            graph.erase_node(node)
    structure = pytree.tree_structure(tuple(kept.values()))
    graph.set_codegen(python_calling(list(kept), structure, signature.out_structure))


def has_tensor(value: Any, signature: Signature) -> bool:
    """Whether an argument, as positions of flat inputs, holds a tensor."""
    positions: list[int] = pytree.tree_leaves(value)
    return any(signature.leaves[position].shape is not None for position in positions)
