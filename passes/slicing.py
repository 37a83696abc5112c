"""Dynamic weight slicing: DS-Net (CVPR 2021) and DS-Net++ (TPAMI 2023).

A choice picks one of a few width ratios; every elastic dim that it controls keeps the leading share of its
positions, so that one set of weights holds nested networks. At ratio 1 nothing is cut: the source itself.

    given   y = conv2d(x, W[O, I, k, k], b[O])        O, I elastic
    result  d = decide(policy, "width", gate(v))      v: an earlier value of the trunk
            n = extent(d, (O/4, O/2, 3O/4, O))
            y = conv2d(x, prefix(W, (n, m)), prefix(b, (n,)))

What runs before a gate stays static. A gate is pooling, a linear layer that reduces, ReLU and a linear layer
without noise or norm (see `dyncompile.gate`). DS-Net's gate has a second head on the same hidden layer that
scales the channels of what the gate reads (`attention=True`). Its code has a sigmoid there; ours are gains in
[0, 1] that start at 1 and are 1 at full capacity, so that the network stays exact. Without gates
(`gate=False`) decisions are forced or sampled and everything elastic can move.

DS-Net++ also drops blocks (`depth`); how many at which ratio is configuration, and so are the default ratios
0.25, 0.5, 0.75, 1 (recalled for DS-Net's ResNet, not verified) and the gate's sizes. ``preset="dsnet"`` takes
those of DS-Net's released network, 0.35 to 1 in steps of 0.05. Per-width batch-norm statistics with a shared
affine follow its code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from dyncompile.analysis.dims.facts import ElasticFacts
from dyncompile.analysis.facts import Facts
from dyncompile.analysis.points import Point
from dyncompile.analysis.regions import Branch
from dyncompile.errors import SpecError
from dyncompile.gate import Gate
from dyncompile.pipeline import Plan, Rejection, Site
from dyncompile.plan import Gained
from dyncompile.program import Choice, Domain, Program, Sized
from dyncompile.rewrite import Editor
from dyncompile.selection import (
    Ends,
    Names,
    branch_ends,
    by_preference,
    frozen_tensors,
    is_before,
    reason_against,
    stream_dims,
)

Dropped = tuple[str, Branch, tuple[float, ...]]
"""A choice, a residual branch that it can drop, and whether each column keeps that."""


@dataclass(frozen=True)
class Slicing:
    """Width slicing of any network.

    Attributes:
        ratios: shares of each dim that can be kept, ascending; 1.0 is added if missing. With `depth` they may
            repeat: ``ratios=(1, 1, 1), depth=(0.25, 0.5, 1)`` drops blocks alone.
        preset: name of a published set of ratios, which is taken instead (`PUBLISHED`).
        depth: shares of each stage's residual branches that are kept at each ratio, first ones first; empty
            keeps all. At the full ratio it is 1. Branches before the gate stay.
        attention: the gate has a second head, which scales the channels that it reads.
        per: one choice for the whole model, per stage (runs of one resolution), per block (dims that can be
            decided at the same place), or, without gates, per elastic dim.
        gate: insert decision nets. Each stands as late as its dims allow; the model's only one at the start.
        start: so many places for gates, from the input on, are passed over: what they would decide is static.
        hidden: width of a gate's hidden layer; 0 takes a quarter of its features, at least 16.
        grid: cells per side that a gate pools a map to; 1 is the mean over all positions, as in DS-Net.
        confidence: probability that an untrained gate gives to full width.
        divisor: kept channels are rounded to multiples of this; attention heads and groups count with their
            width.
        minimum: no dim keeps fewer channels than this.
        embedding: also slice a residual stream that is layer-normalized (a transformer's embedding dim). It
            is not zero-equivalent: sub-networks normalize over what they keep.
        include, exclude: regular expressions, searched in the names of elastic dims.
        name: prefix of the choices, so that the pass can be applied twice.
    """

    method: ClassVar[str] = "dsnet"

    ratios: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    preset: str = ""
    depth: tuple[float, ...] = ()
    attention: bool = False
    per: Literal["model", "stage", "block", "dim"] = "model"
    gate: bool = True
    start: int = 0
    hidden: int = 0
    grid: int = 1
    confidence: float = 0.9
    divisor: int = 8
    minimum: int = 8
    embedding: bool = False
    include: str = ""
    exclude: str = ""
    name: str = "width"

    def __post_init__(self) -> None:
        object.__setattr__(self, "depth", tuple(map(float, self.depth)))
        object.__setattr__(self, "ratios", _ratios(self.ratios, self.preset, repeat=bool(self.depth)))
        object.__setattr__(self, "preset", "")
        self._check_depth()
        if self.attention and not self.gate:
            raise SpecError("attention is a head of the gate: it needs gate=True")
        if self.per not in ("model", "stage", "block", "dim"):
            raise SpecError(f"per must be model, stage, block or dim, got {self.per!r}")
        if self.per == "dim" and self.gate:
            raise SpecError(
                "a gate per elastic dim is not offered",
                fix="per=block is the finest with gates; add gate=False to decide every dim by policy",
            )
        if min(self.start, self.hidden) < 0 or self.grid < 1 or not 0 < self.confidence < 1:
            raise SpecError("start and hidden are at least 0, grid at least 1, confidence lies in (0, 1)")
        if self.divisor < 1 or self.minimum < 1:
            raise SpecError(f"divisor and minimum must be at least 1, got {self.divisor} and {self.minimum}")
        Names(self.include, self.exclude)

    def _check_depth(self) -> None:
        if not self.depth:
            return
        if self.per not in ("model", "stage"):
            raise SpecError(f"depth is decided per model or stage, not per {self.per}")
        fits = len(self.depth) == len(self.ratios) and self.depth[-1] == 1
        if not fits or any(not 0 <= share <= 1 for share in self.depth):
            raise SpecError(
                f"depth has a share in [0, 1] for each of {len(self.ratios)} ratios and ends with 1, "
                f"got {self.depth}",
                fix=f"e.g. depth={(0.5,) * (len(self.ratios) - 1) + (1.0,)} for ratios={self.ratios}",
            )
        columns = list(zip(self.ratios, self.depth, strict=True))
        if columns != sorted(set(columns)):
            raise SpecError(
                f"of equal ratios the depths ascend, got depth={self.depth} for ratios={self.ratios}",
                fix="e.g. ratios=(1, 1, 1), depth=(0.25, 0.5, 1)",
            )

    def plan(self, program: Program, facts: Facts) -> Plan:
        """Choose the elastic dims, group them by choice, compute their candidate sizes."""
        rejections = list(frozen_tensors(facts))
        chosen: list[ElasticFacts] = []
        for one in by_preference(facts):
            reason = self._reason_against(one, chosen, program, facts)
            if reason is None:
                chosen.append(one)
            else:
                rejections.append(Rejection(one.dim.name, reason, one.mixed[0].line if one.mixed else ""))
        chosen.sort(key=lambda one: list(facts.dims.elastic).index(one.dim.name))
        sized = {one.dim.name: Sized(self._choice_of(one, facts), self._sizes(one, facts)) for one in chosen}
        wished = self._dropped(facts)
        gates = self._gates(sized, wished, facts) if self.gate else dict[str, Gate]()
        gained = dict[str, Gained]()
        for choice, branch, weights in wished:
            ends = self._ends(branch, gates.get(choice), program, facts)
            if isinstance(ends, str):
                rejections.append(Rejection(branch.name, ends))
            else:
                gained[branch.name] = Gained(choice, weights, ends)
        names = list(dict.fromkeys(one.choice for one in (*sized.values(), *gained.values())))
        gates = {name: gates[name] for name in names if name in gates}
        heads = {_attention(name): replace(gate, trunk=name) for name, gate in gates.items()}
        heads = heads if self.attention else {}
        return Plan(
            choices=(*map(self._choice, names), *(_gains(name, gate) for name, gate in heads.items())),
            gates={**gates, **heads},
            sites=(
                *(Site(name, s.choice, " / ".join(map(str, s.sizes))) for name, s in sized.items()),
                *(Site(name, one.choice, _kept_at(one)) for name, one in gained.items()),
                *(Site(gate.point.name, name, "channels scaled") for name, gate in heads.items()),
            ),
            rejections=tuple(rejections),
            sized=sized,
            gained=gained,
        )

    def rewrite(self, editor: Editor, plan: Plan) -> None:
        """Insert the decisions, then let the types do the rest."""
        for choice in plan.choices:
            editor.add_choice(choice, plan.gates.get(choice.name))
        editor.gain(plan.gained.values())
        for name, gate in plan.gates.items():
            if gate.trunk:
                editor.attend(name, gate.point)
        editor.resize(plan.sized)

    # -- planning -----------------------------------------------------------------------------

    def _reason_against(
        self, one: ElasticFacts, chosen: Sequence[ElasticFacts], program: Program, facts: Facts
    ) -> str | None:
        if reason := reason_against(one, chosen, program, facts, Names(self.include, self.exclude)):
            return reason
        if not self.embedding and is_normalized_stream(one, facts):
            return f"a residual stream under {one.mixed[0].how}: set embedding=True to slice it"
        if self.gate and (reason := self._reason_against_gating(one, facts)):
            return reason
        if set(self.ratios) == {1.0}:
            return "every column keeps all of it"
        if len(set(self._sizes(one, facts))) == 1:
            rounding = f"divisor {self.divisor}, minimum {self.minimum}"
            return f"{one.dim.size} positions leave nothing to choose with {rounding}"
        return None

    def _reason_against_gating(self, one: ElasticFacts, facts: Facts) -> str | None:
        if facts.points.before[one.dim.name] <= self.start:
            where = facts.points.points[self.start].name if facts.points.points[self.start :] else "any place"
            return f"it is used before a gate could decide (at {where}); gate=False decides by policy"
        if not one.maskable:
            return f"{one.mixed[0].how} mixes it, so no gate can be trained by masks; gate=False slices it"
        return None

    def _gates(
        self, sized: Mapping[str, Sized], dropped: Sequence[Dropped], facts: Facts
    ) -> Mapping[str, Gate]:
        """By choice: as late as what it decides allows, to read the best features; one alone comes first."""
        places, latest = facts.points.points, dict[str, int]()
        for name, one in sized.items():
            latest[one.choice] = min(facts.points.before[name] - 1, latest.get(one.choice, len(places)))
        of_dims = set(latest)
        for choice, branch, _ in dropped:
            place = sum(is_before(point, branch, facts) for point in places) - 1
            if choice not in of_dims and place >= self.start:  # blocks alone
                latest[choice] = min(place, latest.get(choice, place))
        return {
            choice: self._gate_at(places[self.start if self.per == "model" else place])
            for choice, place in latest.items()
        }

    def _gate_at(self, point: Point) -> Gate:
        features = point.shape[point.channels - 1]
        return Gate(point, self.hidden or max(16, features // 4), self.confidence, self.grid)

    def _dropped(self, facts: Facts) -> list[Dropped]:
        """Residual branches that some column leaves out: those of a stage end first."""
        stages: dict[int, list[Branch]] = {}
        for branch in facts.regions.branches if self.depth else ():
            stages.setdefault(facts.stage_at[branch.exit], []).append(branch)
        found: list[Dropped] = []
        for stage, branches in stages.items():
            choice = self.name if self.per == "model" else f"{self.name}.stage{stage}"
            kept = [round(share * len(branches)) for share in self.depth]
            for place, branch in enumerate(branches):
                weights = tuple(float(place < count) for count in kept)
                found += [] if all(weights) else [(choice, branch, weights)]
        return found

    def _ends(self, branch: Branch, gate: Gate | None, program: Program, facts: Facts) -> Ends | str:
        """Where a branch that can be dropped ends, or why it cannot be."""
        ends = branch_ends(branch, program, facts)
        if isinstance(ends, str) or not self.gate:
            return ends
        known = gate is not None and is_before(gate.point, branch, facts)
        return ends if known else "it starts before the gate decides"

    def _sizes(self, one: ElasticFacts, facts: Facts) -> tuple[int, ...]:
        """Kept positions per ratio: the channels they stand for are multiples of the divisor."""
        channels = facts.unit_of.get(one.dim.name, 1)
        step = max(1, self.divisor // channels)
        least = min(one.dim.size, -(-self.minimum // channels))
        wanted = [int(one.dim.size * ratio + step / 2) // step * step for ratio in self.ratios]
        sizes = [min(one.dim.size, max(least, step, n)) for n in wanted]
        return (*sizes[:-1], one.dim.size)

    def _choice_of(self, one: ElasticFacts, facts: Facts) -> str:
        if self.per == "stage":
            return f"{self.name}.stage{facts.stage_of[one.dim.name]}"
        if self.per == "block":
            return f"{self.name}.{self._block_of(one, facts)}"
        return f"{self.name}.{one.dim.name}" if self.per == "dim" else self.name

    def _block_of(self, one: ElasticFacts, facts: Facts) -> str:
        """The place where a dim is decided at the latest, by the branch that starts there if one does."""
        before = facts.points.before[one.dim.name]
        if before == 0:
            return "start"
        point = facts.points.points[before - 1]
        return point.branch or point.name

    def _choice(self, name: str) -> Choice:
        rows = [tuple(float(i == j) for j in range(len(self.ratios))) for i in range(len(self.ratios))]
        return Choice(name, Domain.ONE_HOT, rows[-1], rows[0], self._labels)

    @property
    def _labels(self) -> tuple[str, ...]:
        """Columns by ratio; where ratios repeat, by ratio and depth: ``1@0.5``."""
        if len(set(self.ratios)) == len(self.ratios):
            return tuple(f"{ratio:g}" for ratio in self.ratios)
        return tuple(f"{ratio:g}@{depth:g}" for ratio, depth in zip(self.ratios, self.depth, strict=True))


PUBLISHED: Mapping[str, tuple[float, ...]] = {"dsnet": tuple(c / 640 for c in range(224, 641, 32))}
"""Ratios of released networks: DS-Net's MobileNet has 14 widths of its stage 3, 224 to 640 channels."""


def _ratios(given: tuple[float, ...], preset: str, *, repeat: bool) -> tuple[float, ...]:
    if preset:
        if preset not in PUBLISHED:
            raise SpecError(f"no preset is called {preset!r}", fix=f"there are: {', '.join(PUBLISHED)}")
        return PUBLISHED[preset]
    bad = [r for r in given if not 0 < r <= 1]
    if bad or not given:
        raise SpecError(f"ratios must lie in (0, 1], got {bad or 'none'}", fix="e.g. ratios=(0.25, 0.5, 1.0)")
    found = sorted(map(float, given) if repeat else {*map(float, given)})
    return (*found, 1.0) if found[-1] < 1 else tuple(found)


def _attention(choice: str) -> str:
    return f"{choice}.attention"


def _gains(name: str, gate: Gate) -> Choice:
    """The second head: a gain per channel that the gate reads."""
    channels = gate.point.shape[gate.point.channels - 1]
    return Choice(name, Domain.GAINS, (1.0,) * channels, (1.0,) * channels)


def _kept_at(one: Gained) -> str:
    return "kept at " + ", ".join(str(i) for i, weight in enumerate(one.weights) if weight)


def is_normalized_stream(one: ElasticFacts, facts: Facts) -> bool:
    """Whether a dim runs through a residual stream and is normalized over: a transformer's embedding."""
    return bool(one.mixed) and one.dim.name in stream_dims(facts)


PASSES = (Slicing,)
