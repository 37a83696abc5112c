"""Early exits: heads on the way, whose prediction is final for samples that they are sure of.

BranchyNet (Teerapittayanon, McDanel, Kung; ICPR 2016) put side branches on a network; multi-exit networks
followed. Here a head is pooling, a hidden and a linear layer (before them a layer norm, for token streams),
a confidence and a threshold (`dyncompile.exits`), at the last place that has a given share of the network's
MACs before it:

    early_i = head_i(x_i, pooled)
    output  = early_1 where confidence(early_1) > t_1, else early_2 where ..., else the network's own

Thresholds are above 1 at first: nobody leaves before ``dc.calibrate_exit``, and the network is its source.
What comes after an exit does not run for the samples that left there, other decisions included.

BranchyNet decides by entropy; its branches are small convolutional networks. Ours keep a coarse grid of the
map and have a hidden layer, which an early value of few channels needs. On Fashion-MNIST, after 37 % of a
ResNet's MACs (8 channels), heads of each kind had these validation accuracies in one training of all: one
mean and a linear layer 68.6 %; a grid of 4 by 4 86.6 %, with a hidden layer of 64 88.4 %; a 3x3 convolution
to 32 channels and a grid of 2 by 2 86.2 %, at four times the head's cost. Shares are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dyncompile.analysis.facts import Facts
from dyncompile.analysis.points import Point
from dyncompile.errors import SpecError
from dyncompile.exits import KINDS, Confidence, Kind, prediction
from dyncompile.heads import PooledHead, seeded
from dyncompile.inline import reading, values
from dyncompile.pipeline import Plan, Rejection, Site
from dyncompile.program import MODES, Choice, Domain, Program
from dyncompile.rewrite import Editor
from dyncompile.selection import point_at


@dataclass(frozen=True)
class Exits:
    """Heads at shares of the network's MACs, each with a threshold.

    Attributes:
        at: shares of the source's MACs, in (0, 1); an exit stands at the last place that has at most so many
            before it, or at the first place there is.
        grid: cells per side that a head pools a map to, at most (`PooledHead`); 1 takes one mean.
        hidden: width of a head's hidden layer, at least; 0 has none.
        confidence: max, entropy or margin of a head's probabilities.
        name: of the choices, ``<name>.1`` and so on, so that the pass can be applied twice.
    """

    method: ClassVar[str] = "exits"

    at: tuple[float, ...] = (0.35, 0.7)
    grid: int = 4
    hidden: int = 64
    confidence: Kind = "max"
    name: str = "exit"

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", tuple(sorted(map(float, self.at))))
        if not self.at or any(not 0 < share < 1 for share in self.at):
            raise SpecError(
                f"exits stand at shares of the MACs in (0, 1), got {self.at}", fix="e.g. at=(0.35, 0.7)"
            )
        if self.grid < 1 or self.hidden < 0:
            raise SpecError(f"grid is at least 1 and hidden at least 0, got {self.grid} and {self.hidden}")
        if self.confidence not in KINDS:
            raise SpecError(f"a confidence is one of {', '.join(KINDS)}, got {self.confidence!r}")

    def plan(self, program: Program, facts: Facts) -> Plan:
        """One exit per place."""
        found = [prediction(program.graphs[mode]) for mode in MODES]
        reason = next((one for one in found if isinstance(one, str)), None)
        rejections: list[Rejection] = []
        places: dict[str, Point] = {}
        for share in self.at:
            point = point_at(share, program, facts)
            if reason is not None or point is None:
                rejections.append(
                    Rejection(f"at {share:g}", reason or "no value of the trunk can be read by a head")
                )
            elif point.name in places:
                rejections.append(Rejection(f"at {share:g}", f"`{point.name}` has an exit already"))
            else:
                places[point.name] = point
        names = [f"{self.name}.{number}" for number, _ in enumerate(places, 1)]
        reads = {name: f"head at {place}" for name, place in zip(names, places, strict=True)}
        return Plan(
            choices=tuple(Choice(name, Domain.EXIT, (0.0,), (1.0,), ("stop",)) for name in names),
            sites=tuple(
                Site(place, name, "the head's prediction, where it is confident")
                for name, place in zip(names, places, strict=True)
            ),
            rejections=tuple(rejections),
            deciders=reads,
            points=dict(zip(names, places.values(), strict=True)),
        )

    def rewrite(self, editor: Editor, plan: Plan) -> None:
        """Insert heads, scores and exits."""
        value = editor.program.graphs["eval"].output_node().all_input_nodes[0].meta["val"]
        for choice in plan.choices:
            point = plan.points[choice.name]
            with seeded(choice.name):
                head = PooledHead(point, int(value.shape[1]), self.grid, self.hidden)
            inputs = reading(editor.at(point.nodes))
            early, _ = values(editor.insert(head, f"heads.{choice.name}", inputs))
            editor.exit(choice, early, Confidence(self.confidence))


PASSES = (Exits,)
