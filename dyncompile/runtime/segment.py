"""What runs between two cuts of a graph, and what runs for rows that stop at one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dyncompile.runtime.compiled import GraphForward


@dataclass(frozen=True)
class Outlet:
    """What runs for rows that stop: ``forward(policy, *takes)`` -> the graph's outputs."""

    takes: tuple[str, ...]
    forward: GraphForward


@dataclass(frozen=True)
class Segment:
    """What runs between two cuts.

    Attributes:
        choices: what is decided at its start.
        logits: choice -> the value that holds the output of its decision net.
        takes, gives: values that it reads from earlier segments, and those that later ones read from it.
        alive: earlier choices that this or a later segment depends on.
        live: values that this or a later segment reads; others can be forgotten.
        forward: ``(policy, *takes)`` -> gives, or the outputs in the last segment.
        outlets: exits that are decided at its start, outermost first, by choice.
        row_bytes: memory of the widest value of one row, where rows may run in blocks; else 0.
    """

    choices: tuple[str, ...]
    logits: Mapping[str, str]
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    alive: frozenset[str]
    live: frozenset[str]
    forward: GraphForward
    outlets: Mapping[str, Outlet]
    row_bytes: int = 0
