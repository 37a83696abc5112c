"""What a pass decided before anything is edited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dyncompile.analysis.points import Point
from dyncompile.gate import Gate
from dyncompile.program import Choice, Mode, Picked, Sized
from dyncompile.variants import Offer


@dataclass(frozen=True, slots=True)
class Site:
    """A place where a pass acts: what it is, which choice decides there, and how in words."""

    name: str
    choice: str
    what: str


@dataclass(frozen=True, slots=True)
class Rejection:
    """A place where a pass could have acted and does not, why, and the user's source line."""

    name: str
    reason: str
    line: str = ""


@dataclass(frozen=True, slots=True)
class Gained:
    """A branch that a choice scales: ``exit = kept + gain * output``; a gain of 0 skips it.

    Attributes:
        choice: who decides.
        weights: the gain is ``row @ weights``.
        nodes: (exit, output) in each graph, by node name.
    """

    choice: str
    weights: tuple[float, ...]
    nodes: Mapping[Mode, tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Mixed:
    """Alternatives that a choice weighs: ``y = sum_k (row @ weights[k]) * outputs[k]``.

    The first is what the network computes already, `output`; the others are inserted and read `entry`. What
    has weight 0 in a row need not run for it.

    Attributes:
        name: of the place; state of the alternatives lies under ``dyn.branches.<name>.<alternative>``.
        choice: who decides.
        columns: of the choice, one per alternative; other columns stand for adding nothing.
        alternatives: names of the inserted ones, in the order of the rest of `columns`.
        nodes: (entry, output, exit) in each graph, by node name: the exit alone reads the output from now on
            through the weights; an empty one means all that read it.
    """

    name: str
    choice: str
    columns: tuple[int, ...]
    alternatives: tuple[str, ...]
    nodes: Mapping[Mode, tuple[str, str, str]]


@dataclass(frozen=True, slots=True)
class Synthesized:
    """A weight that becomes ``W0 + sum_n a_n D_n``: a_n is column ``start + n`` of a choice.

    A `step` above 0 rounds coefficients to its multiples. They are `convex` if decision nets always give such
    as sum to one; a forced route may say otherwise.
    """

    choice: str
    start: int
    bases: int
    step: float = 0.0
    convex: bool = False


@dataclass(frozen=True)
class Plan:
    """What a pass is going to do; nothing has been edited yet.

    Attributes:
        choices: decision points to insert.
        sites: where they act.
        rejections: where they do not, and why.
        sized: elastic dims whose size a choice decides.
        gates: decision nets, by the choice that each decides.
        picked: elastic dims whose positions a choice keeps and scales one by one.
        gained: branches that a choice scales or skips, by name.
        mixed: places with alternatives, by name.
        synthesized: weights that a choice mixes from bases, by name.
        deciders: what decides a choice that has a net of the pass's own, in words, by choice.
        points: values that such nets read, by choice.
        offer: sizes of an input that a choice picks from.
    """

    choices: tuple[Choice, ...] = ()
    sites: tuple[Site, ...] = ()
    rejections: tuple[Rejection, ...] = ()
    sized: Mapping[str, Sized] = field(default_factory=dict[str, Sized])
    gates: Mapping[str, Gate] = field(default_factory=dict[str, Gate])
    picked: Mapping[str, Picked] = field(default_factory=dict[str, Picked])
    gained: Mapping[str, Gained] = field(default_factory=dict[str, Gained])
    mixed: Mapping[str, Mixed] = field(default_factory=dict[str, Mixed])
    synthesized: Mapping[str, Synthesized] = field(default_factory=dict[str, Synthesized])
    deciders: Mapping[str, str] = field(default_factory=dict[str, str])
    points: Mapping[str, Point] = field(default_factory=dict[str, Point])
    offer: Offer | None = None
