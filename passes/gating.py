"""LC-Net: per-sample skipping of layers and channels, with learned scaling of what is kept.

"Fully Dynamic Inference with Deep Neural Networks" (Xia, Yin, Dai, Jha; IEEE TETC 2021). Two kinds of small
nets decide per sample, from the input of a residual block:

    L-Net   g = r(W . pool(x) + b)   [B, 1]   y = kept(x) + g * branch(x);   g = 0: the branch does not run
    C-Net   s = r(W . pool(x) + b)   [B, C]   a contraction reads s_c * z_c; s_c = 0: channel c is removed
    r       a rectifier with values in [0, 1]; W = 0 and b = 1 at first: the source itself, bit for bit

Verified against the abstract: which layers and which filters are skipped is predicted per instance, and what
is kept is scaled. Not verified: the rectifier's cap at 1 and where C-Nets stand (both as in two independent
re-implementations, which agree on L-Nets at the block's input and on channels after norm and activation),
losses and weights. Transformers (attention and MLP branches, hidden units, heads) are ours.

Channels are gated where the dimension types show that a gain of 0 is the same as removing them: nothing
normalizes over them, and only contractions sum over them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from dyncompile.analysis.dims.facts import ElasticFacts
from dyncompile.analysis.facts import Facts
from dyncompile.analysis.flow import CONTRACTIONS, op_name
from dyncompile.analysis.points import Point
from dyncompile.analysis.sums import Sums
from dyncompile.errors import SpecError
from dyncompile.gate import Gate
from dyncompile.pipeline import Plan, Rejection, Site
from dyncompile.plan import Gained
from dyncompile.program import MODES, Choice, Domain, Picked, Program
from dyncompile.rewrite import Editor
from dyncompile.runtime.rows import batch_axis
from dyncompile.selection import (
    Names,
    branch_ends,
    by_preference,
    frozen_tensors,
    point_before,
    reason_against,
    stream_dims,
)


@dataclass(frozen=True)
class Gating:
    """Layer skipping (L-Net) and channel gating (C-Net) of any network.

    Attributes:
        layers: one gain per residual branch.
        channels: one gain per channel inside branches: filters, hidden units of an MLP, attention heads.
        block: so many channels share a gain; kept weights are then runs of this length.
        bits: straight-through bits instead of gains: on or off, nothing is scaled.
        hidden: width of a hidden layer in every decision net; 0 has none, as in the re-implementations.
        grid: cells per side that a decision net pools a map to; 1 is the mean over all positions.
        confidence: probability of "on" that an untrained bit starts with.
        include, exclude: regular expressions, searched in the names of branches and of elastic dims.
        name: prefix of the choices, so that the pass can be applied twice.
    """

    method: ClassVar[str] = "lcnet"

    layers: bool = True
    channels: bool = True
    block: int = 1
    bits: bool = False
    hidden: int = 0
    grid: int = 1
    confidence: float = 0.9
    include: str = ""
    exclude: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        if not (self.layers or self.channels):
            raise SpecError("lcnet(layers=False, channels=False) has nothing to do")
        if self.hidden < 0 or min(self.block, self.grid) < 1 or not 0.5 < self.confidence < 1:
            raise SpecError("hidden is at least 0, block and grid at least 1, confidence lies in (0.5, 1)")
        Names(self.include, self.exclude)

    @property
    def _names(self) -> Names:
        return Names(self.include, self.exclude)

    def plan(self, program: Program, facts: Facts) -> Plan:
        """Branches, and channels that can be removed faithfully, with a place for a decision before them."""
        drafts: list[_Draft | Rejection] = []
        if self.layers:
            drafts += self._of_branches(program, facts)
        if self.channels:
            drafts += self._of_channels(program, facts)
        found = [one for one in drafts if isinstance(one, _Draft)]
        return Plan(
            choices=tuple(one.choice for one in found),
            gates={one.choice.name: one.gate for one in found},
            sites=tuple(Site(one.name, one.choice.name, one.what) for one in found),
            rejections=tuple(one for one in drafts if isinstance(one, Rejection)),
            picked={one.name: one.acts for one in found if isinstance(one.acts, Picked)},
            gained={one.name: one.acts for one in found if isinstance(one.acts, Gained)},
        )

    def rewrite(self, editor: Editor, plan: Plan) -> None:
        """Insert the decisions, scale what they are about, narrow what channels are computed from."""
        for choice in plan.choices:
            editor.add_choice(choice, plan.gates[choice.name])
        editor.gain(plan.gained.values())
        editor.scale(plan.picked)

    # -- layers -------------------------------------------------------------------------------

    def _of_branches(self, program: Program, facts: Facts) -> Iterator[_Draft | Rejection]:
        if not facts.regions.branches:
            yield Rejection("layers", "the network has no residual branch")
        for refusal in facts.regions.refusals:
            yield Rejection(refusal.name, refusal.reason, refusal.line or "")
        for branch in facts.regions.branches:
            ends, point = branch_ends(branch, program, facts), point_before(branch, facts)
            reason = self._names.reason_against(branch.name)
            if reason is None and point is None:
                reason = "no value before it can be read by a decision net"
            if reason is not None or isinstance(ends, str) or point is None:
                yield Rejection(branch.name, reason or str(ends))
                continue
            choice = self._choice(f"layer.{branch.name}", 1, ("on",))
            what = f"skipped or scaled, {len(branch.body)} nodes"
            yield _Draft(branch.name, choice, self._gate(point), what, Gained(choice.name, (1.0,), ends))

    # -- channels -----------------------------------------------------------------------------

    def _of_channels(self, program: Program, facts: Facts) -> Iterator[_Draft | Rejection]:
        yield from frozen_tensors(facts)
        readers = _Readers(program, facts)
        chosen: list[ElasticFacts] = []
        for one in by_preference(facts):
            reason = reason_against(one, chosen, program, facts, self._names) or self._unfaithful(
                one, readers
            )
            if reason is not None:
                yield Rejection(one.dim.name, reason, one.mixed[0].line if one.mixed else "")
                continue
            chosen.append(one)
            point = facts.points.points[facts.points.before[one.dim.name] - 1]
            columns = -(-one.dim.size // self.block)
            choice = self._choice(f"channels.{_short(one.dim.name)}", columns)
            what = f"{one.dim.size} positions, {columns} gains"
            acts = Picked(choice.name, self.block)
            yield _Draft(one.dim.name, choice, self._gate(point), what, acts)

    def _unfaithful(self, one: ElasticFacts, readers: _Readers) -> str | None:
        """Why a gain of 0 would not be the removal of a channel, or nobody could decide on it in time."""
        if one.mixed:
            return f"{one.mixed[0].how} runs over it: without one position the others change"
        if one.dim.name in readers.streams:
            return "it runs through a residual stream: branches outside use it"
        if not readers.facts.points.before[one.dim.name]:
            return "it is used before a decision net could read anything"
        if one.dim.size <= self.block:
            return f"{one.dim.size} positions are one block: nothing to choose"
        return readers.reason_against(one.dim.name)

    # -- what is inserted ---------------------------------------------------------------------

    def _choice(self, name: str, width: int, labels: tuple[str, ...] = ()) -> Choice:
        domain = Domain.BITS if self.bits else Domain.GAINS
        prefix = f"{self.name}." if self.name else ""
        return Choice(prefix + name, domain, (1.0,) * width, (0.0,) * width, labels)

    def _gate(self, point: Point) -> Gate:
        return Gate(point, self.hidden, self.confidence, self.grid)


@dataclass(frozen=True, slots=True)
class _Draft:
    """One place: its name, who decides on what, what acts there."""

    name: str
    choice: Choice
    gate: Gate
    what: str
    acts: Gained | Picked


class _Readers:
    """Who sums over elastic dims, in both graphs."""

    def __init__(self, program: Program, facts: Facts) -> None:
        self.facts = facts
        self.streams = stream_dims(facts)
        self._reasons: dict[str, str] = {}
        self._contracted: set[str] = set()
        for mode in MODES:
            dims = facts.dims.graphs[mode]
            sums = Sums(dims.types, dims.contractions)
            for node in program.graphs[mode].nodes:
                for operand, _, name in sums.operands(node, facts.dims.elastic):
                    if op_name(node) not in CONTRACTIONS:
                        self._reasons.setdefault(name, f"{op_name(node)} at `{node}` sums over it")
                    elif batch_axis(sums.dims(operand)) is None:
                        self._reasons.setdefault(name, f"`{operand}`, which has no samples, carries it")
                    self._contracted.add(name)

    def reason_against(self, name: str) -> str | None:
        """Why gains cannot be applied to a dim."""
        if name not in self._contracted:
            return "no contraction reads it"
        return self._reasons.get(name)


def _short(name: str) -> str:
    """The name of a dim by its module, where its first tensor is a weight's output."""
    return name.replace(".weight[0]", "")


PASSES = (Gating,)
