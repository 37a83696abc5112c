"""What a pass decided before anything is edited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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
        offer: sizes of an input that a choice picks from.
    """

    choices: tuple[Choice, ...] = ()
    sites: tuple[Site, ...] = ()
    rejections: tuple[Rejection, ...] = ()
    sized: Mapping[str, Sized] = field(default_factory=dict[str, Sized])
    gates: Mapping[str, Gate] = field(default_factory=dict[str, Gate])
    picked: Mapping[str, Picked] = field(default_factory=dict[str, Picked])
    gained: Mapping[str, Gained] = field(default_factory=dict[str, Gained])
    offer: Offer | None = None
