"""BasisNet: a preview of the input mixes the weights of a specialist, and may answer in its place.

"BasisNet: Two-stage Model Synthesis for Efficient Inference" (Zhang, Chu, Zhmoginov, Howard, Jou, Zhu, Zhang,
Hwa, Kovashka; ECV workshop at CVPR 2021).

    stage 1   early, features = preview(x)          a = activation(W . features + b)       a [B, layers x N]
    exit      confidence(early) > threshold         the output is `early`, stage 2 does not run
    stage 2   W_l(x) = W0_l + sum_n a_ln D_ln       every chosen layer l of the source

Verified against the abstract: a lightweight model gives an initial prediction and input-dependent
coefficients, these control how a specialist is put together from basis models, and inference may end early.
As we recall it, and not verified: coefficients per layer, softmax over the bases, kernels mixed with batch
norm shared, a preview that is narrower and sees a smaller image. The form W0 + sum a D is ours: with D = 0 at
first the network is its source for any coefficients. Full capacity is all coefficients at 0, the network of
W0 alone: so it stays the source's own computation after training, too.

Synthesis costs N times the layer's parameters per sample, which is N / (positions) of the layer: where that
is more than `overhead`, as in classifiers and squeeze-excite layers, the layer keeps its one weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from dyncompile import previews
from dyncompile.analysis.facts import Facts
from dyncompile.analysis.macs import evaluate
from dyncompile.analysis.points import Point
from dyncompile.errors import SpecError
from dyncompile.exits import KINDS, Confidence, Kind, prediction
from dyncompile.heads import ACTIVATIONS, Activation, CoefficientHead, PooledHead, seeded
from dyncompile.inline import reading, values
from dyncompile.mixing import layers_of, reason_against_mixing
from dyncompile.pipeline import Plan, Rejection, Site
from dyncompile.plan import Synthesized
from dyncompile.program import MODES, Choice, Domain, Mode, Program
from dyncompile.rewrite import Editor
from dyncompile.selection import Names, point_at
from dyncompile.state import GATES, STATE_PREFIX, state_tensors


@dataclass(frozen=True)
class Basis:
    """Weights of convolutions and linear layers that are mixed per sample; an early exit before them.

    Attributes:
        bases: N, how many D each weight has. 8 and 16 are what we recall of the paper.
        shared: all layers get the same N coefficients instead of N each.
        activation: of the coefficients of a layer: softmax, sigmoid or free.
        temperature: what their scores are divided by.
        step: coefficients are rounded to its multiples, so that samples share kernels; 0 does not round.
        overhead: largest cost of synthesis, as a share of the layer's own MACs.
        preview: "source" is a narrow copy of the network, "stage" a head on one of its first values; another
            name is one that was registered (`register_preview`). "auto" takes "source" for images.
        width, resolution: shares of the source's widths and of its image's sides that a copy has.
        at: share of the source's MACs after which a head on a stage stands.
        exit: let the preview answer where it is confident. Nothing does before ``dc.calibrate_exit``.
        confidence: max, entropy or margin of its probabilities.
        include, exclude: regular expressions, searched in the names of weights.
        name: of the choice, so that the pass can be applied twice.
    """

    method: ClassVar[str] = "basisnet"

    bases: int = 4
    shared: bool = False
    activation: Activation = "softmax"
    temperature: float = 1.0
    step: float = 0.0
    overhead: float = 0.5
    preview: str = "auto"
    width: float = 0.5
    resolution: float = 0.5
    at: float = 0.25
    exit: bool = True
    confidence: Kind = "max"
    include: str = ""
    exclude: str = ""
    name: str = "basis"

    def __post_init__(self) -> None:
        if self.bases < 1 or self.temperature <= 0 or self.step < 0 or self.overhead <= 0:
            raise SpecError(
                "bases is at least 1, temperature and overhead are positive, step is at least 0, "
                f"got {self.bases}, {self.temperature}, {self.overhead}, {self.step}"
            )
        if not (0 < self.width <= 1 and 0 < self.resolution <= 1 and 0 <= self.at < 1):
            raise SpecError("width and resolution lie in (0, 1], at in [0, 1)")
        if self.activation not in ACTIVATIONS or self.confidence not in KINDS:
            raise SpecError(
                f"an activation is one of {', '.join(ACTIVATIONS)}, a confidence one of {', '.join(KINDS)}, "
                f"got {self.activation!r} and {self.confidence!r}"
            )
        Names(self.include, self.exclude)

    @property
    def _names(self) -> Names:
        return Names(self.include, self.exclude)

    # -- planning -----------------------------------------------------------------------------

    def plan(self, program: Program, facts: Facts) -> Plan:
        """Weights that are worth mixing, where the preview stands, whether it may answer."""
        self._check_preview()
        point = self._point(program, facts)
        if isinstance(point, str):
            return Plan(rejections=(Rejection("preview", point),))
        rejections: list[Rejection] = []
        mixed: dict[str, Synthesized] = {}
        sites: list[Site] = []
        for name, overhead in self._weights(program, facts, point):
            if isinstance(overhead, str):
                rejections.append(Rejection(name, overhead))
                continue
            start = 0 if self.shared else self.bases * len(mixed)
            mixed[name] = Synthesized(self.name, start, self.bases, self.step, self._is_convex)
            sites.append(
                Site(name, self.name, f"mixed from {self.bases} bases, {overhead:.1%} for synthesis")
            )
        choices = (self._mixture(mixed),)
        reason = self._reason_against_exit(program)
        if mixed and self.exit and reason is None:
            choices = (Choice(self._exit, Domain.EXIT, (0.0,), (1.0,), ("stop",)), *choices)
            sites.append(Site("output", self._exit, "the preview's prediction, where it is confident"))
        elif self.exit and reason is not None:
            rejections.append(Rejection("exit", reason))
        return Plan(
            choices=choices,
            sites=tuple(sites) if mixed else (),
            rejections=tuple(rejections),
            synthesized=mixed,
            deciders=dict.fromkeys((choice.name for choice in choices), self._reads(program, point)),
        )

    def _check_preview(self) -> None:
        known = ("auto", "source", "stage", *previews.registered_names())
        if self.preview not in known:
            raise SpecError(
                f"no preview is named {self.preview!r}; there are {', '.join(known)}",
                fix="register it first: dc.register_preview(name, factory)",
            )

    @property
    def _is_convex(self) -> bool:
        return self.activation == "softmax" and not self.step

    @property
    def _exit(self) -> str:
        return f"{self.name}.exit"

    def _mixture(self, mixed: Mapping[str, Synthesized]) -> Choice:
        zeros = (0.0,) * (self.bases if self.shared else self.bases * max(len(mixed), 1))
        return Choice(self.name, Domain.MIXTURE, zeros, zeros, block=self.bases)

    def _kind(self, program: Program) -> str:
        if self.preview != "auto":
            return self.preview
        return "source" if previews.is_image(program) else "stage"

    def _point(self, program: Program, facts: Facts) -> Point | str | None:
        """The value that a head on a stage reads; None: the preview reads the input; or why it cannot."""
        kind = self._kind(program)
        if kind == "stage":
            found = point_at(self.at, program, facts)
            return found or "no value of the trunk can be read by a head"
        if kind != "source" and not previews.is_image(program):
            return f"the preview {kind!r} looks at images, and this network takes other inputs"
        return None

    def _reads(self, program: Program, point: Point | None) -> str:
        return f"preview {self._kind(program)}" + (f" at {point.name}" if point else "")

    def _reason_against_exit(self, program: Program) -> str | None:
        found = [prediction(program.graphs[mode]) for mode in MODES]
        return next((one for one in found if isinstance(one, str)), None)

    def _weights(
        self, program: Program, facts: Facts, point: Point | None
    ) -> Iterator[tuple[str, float | str]]:
        """Weights with the cost of synthesis over that of their layer, or why one is left as it is."""
        tensors = state_tensors(program.state)
        often = [id(tensor) for tensor in tensors.values()]
        for name, tensor in tensors.items():
            if name.startswith(f"{STATE_PREFIX}.") or tensor.dim() < 2 or name not in facts.parameters:
                continue
            reason = self._names.reason_against(name)
            if reason is None and often.count(id(tensor)) > 1:
                reason = "it is tied to another parameter"
            for mode in MODES:
                types = facts.dims.graphs[mode].types
                reason = reason or reason_against_mixing(program.graphs[mode], name, types)
                reason = reason or _too_early(program, mode, name, point)
            yield name, reason or self._overhead(program, facts, name, tensor.numel())

    def _overhead(self, program: Program, facts: Facts, name: str, numel: int) -> float | str:
        layers = layers_of(program.graphs["eval"], name)
        own = sum(evaluate(facts.macs.nodes.get(node.name, {}), {}) for node in layers)
        share = self.bases * numel * len(layers) / max(own, 1)
        if share > self.overhead:
            return f"synthesis would cost {share:.3g} times the layer: few positions share its kernel"
        return share

    # -- rewriting ----------------------------------------------------------------------------

    def rewrite(self, editor: Editor, plan: Plan) -> None:
        """Insert the preview, the exit after it, the coefficients after that, and mix."""
        program, point = editor.program, self._point(editor.program, editor.facts)
        assert not isinstance(point, str)
        names = [choice.name for choice in plan.choices]
        with seeded(self.name):
            preview = self._preview(program, point)
        reads = editor.inputs() if point is None else reading(editor.at(point.nodes))
        early, features = values(editor.insert(preview, f"previews.{self.name}", reads))
        decided = None
        if self._exit in names:
            stop = plan.choices[names.index(self._exit)]
            decided = editor.exit(stop, early, Confidence(self.confidence))
        choice = plan.choices[names.index(self.name)]
        with seeded(f"{self.name}.coefficients"):
            head = self._head(choice, int(features["eval"].meta["val"].shape[1]))
        prefix = f"{GATES.removeprefix(f'{STATE_PREFIX}.')}.{self.name}"
        (rows,) = values(editor.insert(head, prefix, reading(features), decided))
        predicts = decided is None and self._reason_against_exit(program) is None
        editor.add_choice(choice, read=reading(rows, early) if predicts else reading(rows))
        editor.synthesize(plan.synthesized)

    def _head(self, choice: Choice, features: int) -> nn.Module:
        layers = choice.width // self.bases
        return CoefficientHead(features, layers, self.bases, self.activation, self.temperature)

    def _preview(self, program: Program, point: Point | None) -> nn.Module:
        value = program.graphs["eval"].output_node().all_input_nodes[0].meta["val"]
        if point is not None:
            return PooledHead(point, int(value.shape[-1]))
        factory = previews.registered_preview(self.preview)
        if factory is None:
            return previews.mirror(program, width=self.width, resolution=self.resolution)
        leaf = next(leaf for leaf in program.signature.leaves if leaf.shape is not None)
        return previews.Preview(
            factory(tuple(int(n or 1) for n in (leaf.shape or ())[1:]), int(value.shape[-1]))
        )


def _too_early(program: Program, mode: Mode, name: str, point: Point | None) -> str | None:
    """Why a weight is used before coefficients are known."""
    if point is None:
        return None
    graph = program.graphs[mode]
    order = {node.name: at for at, node in enumerate(graph.nodes)}
    here = order[point.nodes[mode]]
    if any(order[node.name] <= here for node in layers_of(graph, name)):
        return f"it is used before the preview at {point.name} has decided"
    return None


PASSES = (Basis,)
