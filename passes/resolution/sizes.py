"""The pass: candidate sizes, captures at each of them, the predictor."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from dyncompile.analysis.facts import Facts, analyze
from dyncompile.analysis.macs import evaluate
from dyncompile.capture.again import recapture
from dyncompile.errors import CaptureError, DyncompileError, SpecError
from dyncompile.passes.resolution.predictors import KINDS, Predictor, macs_of
from dyncompile.pipeline import Plan, Rejection, Site, apply_passes
from dyncompile.program import Choice, Domain, Program, size_label
from dyncompile.rewrite import Editor
from dyncompile.spec import parse_spec
from dyncompile.variants import Offer, norm_state

Size = tuple[int, int]


@dataclass(frozen=True)
class Resolution:
    """Resolutions of an image input, one picked per sample.

    Attributes:
        sizes: candidates. An int is the length of the shorter side in pixels; a float is a share of the
            native one, rounded to a multiple of `divisor`. The native size is added. Aspect ratios are kept.
        divisor: of sizes given as shares; 0 takes 8, or 1 where the shorter side is below 64.
        image: name of the image among the arguments; empty takes the only 4-D floating tensor.
        predictor: "residual", "mobile" or "linear"; "auto" takes the first of them that costs at most `share`
            of the network's MACs, "none" leaves the choice to policies.
        share: see `predictor`.
        view: longer side of the copy that the predictor looks at; 0 takes 128, 64 and 16 (DRNet's numbers for
            the first two), at most the native size.
        confidence: probability that an untrained predictor gives to the native size.
        name: of the choice.
    """

    method: ClassVar[str] = "resolution"

    sizes: tuple[int | float, ...] = (0.5, 0.75)
    divisor: int = 0
    image: str = ""
    predictor: str = "auto"
    share: float = 0.1
    view: int = 0
    confidence: float = 0.9
    name: str = "resolution"

    def __post_init__(self) -> None:
        bad = [s for s in self.sizes if not (s >= 1 if isinstance(s, int) else 0 < s <= 1)]
        if bad or not self.sizes:
            raise SpecError(
                f"sizes are pixels (ints) or shares in (0, 1] of the native size, got {bad or 'none'}",
                fix="e.g. sizes=(112, 168) or sizes=(0.5, 0.75)",
            )
        if self.predictor not in (*KINDS, "auto", "none"):
            raise SpecError(f"predictor is {', '.join(KINDS)}, auto or none, got {self.predictor!r}")
        if min(self.divisor, self.view) < 0 or not 0 < self.confidence < 1 or self.share <= 0:
            raise SpecError("divisor and view are at least 0, confidence lies in (0, 1), share above 0")

    def plan(self, program: Program, facts: Facts) -> Plan:
        """Find the source at every size; sizes that it does not take are rejected with its reason."""
        found = self._image(program)
        if isinstance(found, Rejection):
            return Plan(rejections=(found,))
        native = _native(program, found)
        drafts = list(self._captured(program, found, native))
        taken = {size: one for size, one in drafts if not isinstance(one, Rejection)}
        refused = {size: one for size, one in drafts if isinstance(one, Rejection)}
        if not taken:
            return Plan(rejections=tuple(refused.values()))
        programs, sizes = dict(enumerate(taken.values())), (*taken, native)
        choice = self._choice(sizes)
        net, why = self._net(program, facts, found, choice), {size: no.reason for size, no in refused.items()}
        return Plan(
            choices=(choice,),
            sites=tuple(_sites(programs, sizes, facts, choice.name)),
            rejections=tuple(refused.values()),
            offer=Offer(choice, found, sizes, net, programs, why),
        )

    def rewrite(self, editor: Editor, plan: Plan) -> None:
        """Put the sizes beside the native one."""
        assert plan.offer is not None
        editor.vary(plan.offer)

    # -- which input, which sizes -------------------------------------------------------------

    def _image(self, program: Program) -> int | Rejection:
        """Position of the image among the flat inputs."""
        leaves = program.signature.leaves
        maps = [
            i
            for i, leaf in enumerate(leaves)
            if leaf.batched and len(leaf.shape or ()) == 4 and leaf.dtype and leaf.dtype.is_floating_point
        ]
        named = [i for i in maps if leaves[i].path == self.image] if self.image else maps
        if program.source is None:
            return Rejection("image", "a choice decides on sizes already: give all of them to that pass")
        if len(named) == 1:
            return named[0]
        if not maps:
            return Rejection("image", "no 4-D floating-point input")
        there = ", ".join(leaves[i].path for i in maps)
        reason = f"{self.image!r} is none of" if self.image else "name the image: there are several of"
        return Rejection("image", f"{reason} the 4-D floating-point inputs: {there}")

    def _wanted(self, native: Size) -> list[Size]:
        """Candidates, ascending, smaller than the native size or larger, each once."""
        short = min(native)
        step = self.divisor or (8 if short >= 64 else 1)
        sides = {
            side if isinstance(side, int) else max(step, int(short * side + step / 2) // step * step)
            for side in self.sizes
        }
        return [_scaled(native, side / short) for side in sorted(sides)]

    def _captured(
        self, program: Program, image: int, native: Size
    ) -> Iterator[tuple[Size, Program | Rejection]]:
        """Every candidate, with the network at it or why there is none."""
        for size in self._wanted(native):
            label = size_label(size)
            if size[0] >= native[0] or size[1] >= native[1]:
                if size != native:
                    yield size, Rejection(label, f"it is not smaller than the native {size_label(native)}")
                continue
            try:
                found = recapture(program, image, size)
                yield size, apply_passes(found, [parse_spec(spec) for spec in program.history])
            except CaptureError as error:
                yield size, Rejection(label, error.problem, error.where or "")
            except DyncompileError as error:
                yield size, Rejection(label, f"the passes before do not apply there: {error.problem}")

    # -- what is inserted ---------------------------------------------------------------------

    def _choice(self, sizes: tuple[Size, ...]) -> Choice:
        rows = [tuple(float(i == j) for j in range(len(sizes))) for i in range(len(sizes))]
        return Choice(self.name, Domain.ONE_HOT, rows[-1], rows[0], tuple(map(size_label, sizes)))

    def _net(self, program: Program, facts: Facts, image: int, choice: Choice) -> Predictor | None:
        if self.predictor == "none":
            return None
        native, shape = _native(program, image), program.signature.leaves[image].shape
        channels = shape[1] if shape else None
        assert channels is not None
        most = self.share * evaluate(facts.macs.path, {})
        kinds = list(KINDS) if self.predictor == "auto" else [self.predictor]
        for kind in kinds:
            longer = self.view or KINDS[kind][1]
            view = _scaled(native, min(1.0, longer / max(native)))
            net = Predictor(kind, channels, choice.width, view, self.confidence, choice.name)
            if kind == kinds[-1] or macs_of(copy.deepcopy(net), channels) <= most:
                return net
        raise AssertionError("there is a last kind")


def _native(program: Program, image: int) -> Size:
    shape = program.signature.leaves[image].shape
    assert shape is not None
    height, width = shape[-2:]
    assert height is not None
    assert width is not None
    return height, width


def _scaled(size: Size, factor: float) -> Size:
    """Both sides times a factor, to whole pixels."""
    height, width = (max(1, round(side * factor)) for side in size)
    return height, width


def _sites(
    programs: Mapping[int, Program], sizes: tuple[Size, ...], facts: Facts, choice: str
) -> Iterator[Site]:
    whole = evaluate(facts.macs.path, {})
    for column, program in programs.items():
        share = evaluate(analyze(program).macs.path, {}) / max(whole, 1)
        norms = {name.rpartition(".")[0] for name in norm_state(program.graphs["eval"])}
        own = f"{len(norms)} batch norms of its own" if norms else "no batch norm"
        yield Site(size_label(sizes[column]), choice, f"{share:.1%} of the MACs, {own}")
    yield Site(size_label(sizes[-1]), choice, "native: not resized")


PASSES = (Resolution,)
