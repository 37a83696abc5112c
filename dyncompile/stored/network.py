"""The captured network of a program, before any pass: both graphs, what they read, how they are called.

A network that a program has at several sizes of an input is kept at all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dyncompile.errors import CheckpointError
from dyncompile.program import Program
from dyncompile.stored.calling import describe_call, restore_signature
from dyncompile.stored.graphs import describe_graphs, restore_graphs
from dyncompile.stored.sizes import constants_of_sizes, describe_sizes, is_of_a_size, restore_sizes
from dyncompile.stored.state import constants_of, describe_entry, restore_state, source_state
from dyncompile.stored.values import first_line


def describe_network(program: Program) -> dict[str, Any]:
    """JSON of the network that `program` was made from, without the values of its state.

    Raises:
        ValueError: something in it has no form as data: an operator that is not on the list, an output of an
            unknown class.
    """
    found = {
        "graphs": describe_graphs(program.origin or program.graphs),
        "state": [describe_entry(entry) for entry in source_state(program)],
        "call": describe_call(program.signature),
        "notes": list(program.notes),
    }
    sizes = describe_sizes(program)
    return {**found, "sizes": sizes} if sizes else found


def source_constants(program: Program) -> dict[str, Tensor]:
    """State of the source that its state dict leaves out, each tensor once."""
    return {**constants_of(source_state(program)), **constants_of_sizes(program)}


def restore_network(
    described: Mapping[str, Any], inputs: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Program:
    """The captured program that `describe_network` described; its source has the other sizes.

    Args:
        described: from JSON.
        inputs: the description of the inputs beside it.
        tensors: the state's values by name, constants included; they become the program's own.

    Raises:
        CheckpointError: the description is damaged, or calls what it may not.
    """
    native = {name: value for name, value in tensors.items() if not is_of_a_size(name)}
    try:
        signature = restore_signature(inputs, described["call"])
        state = restore_state(described["state"], native)
        graphs = restore_graphs(described["graphs"], state, signature)
        notes = tuple(str(note) for note in described["notes"])
        program = Program(graphs=graphs, state=state, signature=signature, notes=notes)
        return restore_sizes(described.get("sizes", []), program, tensors)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged description can make torch's shape functions fail in any way
        raise CheckpointError(f"the stored graph is damaged: {first_line(error)}") from None
