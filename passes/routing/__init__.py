"""Dynamic Routing Networks: alternatives to parts of a network, weighed and selected per sample by routers.

"Dynamic Routing Networks" (Cai, Shu, Wang; WACV 2021), earlier "ISBNet: Instance-aware Selective Branching
Networks". A connection between two values of the network becomes a set of candidate branches:

    p = softmax((W2 . relu(W1 . pool(x) + b1) + b2) / tau)       [B, branches], Gumbel noise in training
    w = p where p >= threshold, or the best alone; else 0; renormalized over what is kept
    y = kept + sum_k w_k branch_k(x)                         branch_0 is the source's own; w_k = 0: not run

One RouterNet per cell reads the cell's input and weighs all its connections: a hidden layer that they share,
one output layer per connection. At first W2 = 0 and b2 gives the source's own branch `confidence`: selected
rows are then one-hot, and the network is the source itself, bit for bit.

Verified against the abstract: routes to "only necessary transformation branches selected from a candidate set
of branches for each connection between transformation nodes", weights "generated from lightweight
hypernetworks (RouterNets) and then recalibrated with Gumbel-Softmax before the selection". Not verified: the
candidates, the routers' layers, how selection goes (threshold here, `top` as a variant), losses and weights.
The paper trains cells of its own from scratch; that alternatives are put into any trained network is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from dyncompile.analysis.facts import Facts
from dyncompile.errors import SpecError
from dyncompile.gate import Gate
from dyncompile.passes.routing.candidates import (
    Candidate,
    Nothing,
    Place,
    find_candidate,
    register_candidate,
)
from dyncompile.passes.routing.connections import KINDS, Connection, find_connections, module_paths
from dyncompile.passes.routing.places import build, module_macs, own_macs, place_of
from dyncompile.pipeline import Plan, Rejection, Site
from dyncompile.plan import Mixed
from dyncompile.program import Choice, Domain, Program, Selection
from dyncompile.rewrite import Editor
from dyncompile.selection import Names

__all__ = ["Candidate", "Nothing", "Place", "Routing", "register_candidate"]


@dataclass(frozen=True)
class Routing:
    """Alternatives to connections of any network, weighed per sample.

    Attributes:
        connections: "branches" (residual branches), "steps" (the trunk between two values that a contraction
            reads), "stages", "modules" (those that `include` finds), or "auto": branches, steps without any.
        candidates: what may stand in for a connection, beside the original.
        per: cell that one router decides for: "stage", or "connection".
        threshold: least probability of an alternative that is kept; 0 is one over their number.
        top: keep so many at most; 0 has no limit, 1 picks the best alone, with weight 1.
        confidence: probability of the original before training.
        hidden: width of a router's hidden layer; 0 has none.
        grid: cells per side that a router pools a map to; 1 is the mean over all positions.
        rank: channels inside a low-rank candidate, as a share of the fewer of those in front and behind.
        share: of every dim inside a narrower copy of the connection.
        zero: alternatives start at 0 (their last weights do) instead of at random.
        include, exclude: regular expressions, searched in the names of connections.
        name: prefix of the choices, so that the pass can be applied twice.
    """

    method: ClassVar[str] = "routing"

    connections: str = "auto"
    candidates: tuple[str, ...] = ("identity", "separable3", "separable5", "narrow", "lowrank")
    per: str = "stage"
    threshold: float = 0.0
    top: int = 0
    confidence: float = 0.9
    hidden: int = 16
    grid: int = 1
    rank: float = 0.25
    share: float = 0.5
    zero: bool = False
    include: str = ""
    exclude: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        for field, value, offered in (
            ("connections", self.connections, KINDS),
            ("per", self.per, ("stage", "connection")),
        ):
            if value not in offered:
                raise SpecError(f"{field} is one of {', '.join(offered)}, got {value!r}")
        if not self.candidates or len(set(self.candidates)) < len(self.candidates):
            raise SpecError(f"candidates are at least one, each once, got {list(self.candidates)}")
        for name in self.candidates:
            find_candidate(name)
        if not (0 < self.rank <= 1 and 0 < self.share < 1 and 0 < self.confidence < 1):
            raise SpecError("rank lies in (0, 1], share and confidence in (0, 1)")
        if self.hidden < 0 or self.grid < 1:
            raise SpecError("hidden is at least 0, grid at least 1")
        if self.connections == "modules" and not self.include:
            raise SpecError("connections=modules needs include=, a regular expression of module paths")
        Names(self.include, self.exclude)
        self._selection(len(self.candidates) + 1)

    @property
    def _names(self) -> Names:
        return Names(self.include, self.exclude)

    def _selection(self, width: int) -> Selection:
        """How rows of so many alternatives become sparse: before training, to the original alone."""
        others = (1 - self.confidence) / max(width - 1, 1)
        threshold = self.threshold or 1 / width
        if self.confidence <= others or (self.top != 1 and threshold <= others):
            raise SpecError(
                f"untrained routers give {width} alternatives {self.confidence:.3g} and {others:.3g} each: "
                f"threshold={threshold:.3g}, top={self.top} would keep more than the original",
                fix="raise the confidence or the threshold",
            )
        return Selection(threshold, self.top)

    # -- planning -----------------------------------------------------------------------------

    def plan(self, program: Program, facts: Facts) -> Plan:
        """Connections with at least one alternative, and a router's place before each cell."""
        drafts: list[_Draft] = []
        rejections: list[Rejection] = []
        for found in self._found(program, facts):
            if isinstance(found, Rejection):
                rejections.append(found)
                continue
            place = self._place(found, program, facts)
            if isinstance(place, str):
                rejections.append(Rejection(found.name, place))
                continue
            built, refused = build(self.candidates, place, zero=self.zero)
            rejections += [Rejection(f"{found.name}: {name}", why) for name, why in refused.items()]
            if built:
                drafts.append(self._draft(found, place, built, program, facts))
        choices = tuple(one.choice for one in drafts)
        return Plan(
            choices=choices,
            gates=self._gates(drafts),
            sites=tuple(Site(one.mixed.name, one.choice.name, one.what) for one in drafts),
            rejections=tuple(rejections),
            mixed={one.mixed.name: one.mixed for one in drafts},
        )

    def rewrite(self, editor: Editor, plan: Plan) -> None:
        """Insert the decisions, then alternatives: later ones first, they read what earlier ones give."""
        for choice in plan.choices:
            editor.add_choice(choice, plan.gates[choice.name])
        found = self._found(editor.program, editor.facts)
        connections = {one.name: one for one in found if isinstance(one, Connection)}
        for name, mixed in reversed([*plan.mixed.items()]):
            place = self._place(connections[name], editor.program, editor.facts)
            assert isinstance(place, Place)
            built, _ = build(mixed.alternatives, place, zero=self.zero)
            editor.mix(mixed, [None if isinstance(one, nn.Identity) else one for one in built.values()])
        editor.resize({})

    def _found(self, program: Program, facts: Facts) -> Iterator[Connection | Rejection]:
        names = self._names
        paths = [path for path in module_paths(program) if names.reason_against(path) is None]
        if self.connections == "modules" and not paths:
            yield Rejection(self.include, "no module has a path that this finds")
        for one in find_connections(self.connections, paths, program, facts):
            reason = names.reason_against(one.name) if isinstance(one, Connection) else None
            yield Rejection(one.name, reason) if reason else one

    def _place(self, one: Connection, program: Program, facts: Facts) -> Place | str:
        return place_of(one, program, facts, self.rank, self.share)

    def _draft(
        self, one: Connection, place: Place, built: dict[str, nn.Module], program: Program, facts: Facts
    ) -> _Draft:
        labels = ("original", *built)
        like = next(p for p in program.state.parameters() if p.is_floating_point())
        costs = [own_macs(one, facts), *(module_macs(module, place, like) for module in built.values())]
        cheapest = costs.index(min(costs))
        rows = [tuple(float(i == column) for i in range(len(labels))) for column in (0, cheapest)]
        prefix = f"{self.name}." if self.name else ""
        name = f"{prefix}route.{one.name}"
        choice = Choice(name, Domain.SIMPLEX, rows[0], rows[1], labels, self._selection(len(labels)))
        running = [i for i, label in enumerate(labels) if not isinstance(built.get(label), Nothing)]
        mixed = Mixed(one.name, name, tuple(running), tuple(labels[i] for i in running if i), one.nodes)
        what = f"{'beside what is kept' if one.residual else 'all of it'}: {', '.join(labels)}"
        return _Draft(one, choice, mixed, what)

    def _gates(self, drafts: Sequence[_Draft]) -> dict[str, Gate]:
        """One router per cell, at the point of its first connection; the others are heads on it."""
        owners: dict[object, _Draft] = {}
        gates: dict[str, Gate] = {}
        for one in drafts:
            cell = one.connection.stage if self.per == "stage" else one.choice.name
            owner = owners.setdefault(cell, one)
            trunk = "" if owner is one else owner.choice.name
            point = owner.connection.point
            gates[one.choice.name] = Gate(point, self.hidden, self.confidence, self.grid, trunk)
        return gates


@dataclass(frozen=True, slots=True)
class _Draft:
    """One connection: who decides, between what, in words."""

    connection: Connection
    choice: Choice
    mixed: Mixed
    what: str


PASSES = (Routing,)
