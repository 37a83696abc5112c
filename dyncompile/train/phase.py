"""The nouns of training: a recipe is phases, a phase is turns, a turn is one forward pass and its terms.

Nothing here runs anything: these are the configurations that `dyncompile.train.fit` carries out and that
recipes (plain functions) return.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor

from dyncompile.cost import Cost, ModelMacs
from dyncompile.errors import SpecError
from dyncompile.policies import Policy
from dyncompile.runtime.model import DynamicModel, Execution, Record

ADDED = "added"
"""Marks fields that earlier releases did not have: at their default they are no part of what identifies a
training, so that checkpoints from before them can be resumed."""

Loss = Callable[[Any, Any], Tensor]
"""``loss(output, target)`` -> scalar, mean over the batch."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One call of the model: its arguments and what it should give (labels, or whatever the loss takes)."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    target: Any


View = Callable[[Batch], Batch]
"""Another augmented view of the same samples."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Where training stands.

    Attributes:
        step: optimizer steps done in this phase.
        steps: optimizer steps that the phase takes.
        seed: an int that differs in every step and is the same on every process.
    """

    step: int
    steps: int
    seed: int

    @property
    def progress(self) -> float:
        """Share of the phase that is done, in [0, 1)."""
        return self.step / max(self.steps, 1)


@dataclass(frozen=True)
class Moment:
    """What an objective sees of one turn.

    Attributes:
        dyn: the model under training.
        batch: the samples of this turn (its view of them).
        record: output, route and logits of this turn's forward pass.
        loss: the task loss.
        clock: where training stands.
        teacher: runs the teacher on the samples as loaded, without gradients, once per policy and step. It is
            the moving average of the weights, in evaluation mode, where the phase keeps one. Otherwise it is
            the model itself: what an earlier turn of this step gave by the policy, else a run of its own.
        memory: numbers that the term keeps between steps; they are saved with the training state.
        given_cost: what budgets count, as `fit` was given it; None is MACs.
    """

    dyn: DynamicModel
    batch: Batch
    record: Record
    loss: Loss
    clock: Clock
    teacher: Callable[[Policy], Record]
    memory: dict[str, float]
    given_cost: Cost | None = None

    @property
    def cost(self) -> Cost:
        """What budgets and prices of columns count."""
        return ModelMacs(self.dyn) if self.given_cost is None else self.given_cost


class Objective(Protocol):
    """A term of the training loss."""

    def __call__(self, moment: Moment) -> Tensor:
        """A scalar to be minimized; it may read and write `moment.memory`."""
        ...


@dataclass(frozen=True, slots=True)
class Turn:
    """One forward and backward pass of a step.

    Attributes:
        policy: who decides, as a function of the clock: ``lambda clock: Sampled(clock.seed)``.
        terms: objectives by name; their sum is minimized. Weights are part of an objective.
        view: another augmentation of the same samples; None takes them as loaded.
        execution: how mixed decisions run.
    """

    policy: Callable[[Clock], Policy]
    terms: Mapping[str, Objective]
    view: View | None = None
    execution: Execution = "auto"


@dataclass(frozen=True, slots=True)
class Optimization:
    """Optimizer settings of one group of parameters; one-dimensional parameters take no weight decay.

    `rate` is the peak learning rate. `momentum` serves SGD (Nesterov), which has no other setting.
    """

    kind: Literal["sgd", "adamw"] = "adamw"
    rate: float = 1e-3
    decay: float = 0.0
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if self.kind not in ("sgd", "adamw") or not (self.rate >= 0 and self.decay >= 0):
            raise SpecError(f"an optimization is sgd or adamw with rate and decay >= 0, got {self}")
        if not 0 <= self.momentum < 1:
            raise SpecError(f"momentum lies in [0, 1), got {self.momentum}")


@dataclass(frozen=True, slots=True)
class Schedule:
    """Learning rate over a phase: linear warm-up, then cosine to `floor`, steps, or constant.

    Attributes:
        warmup: share of the phase that warms up from 0.
        floor: final share of the peak rate (cosine).
        drops, factor: shares of the phase at which the rate is multiplied by `factor` (step).
    """

    kind: Literal["cosine", "step", "constant"] = "cosine"
    warmup: float = 0.0
    floor: float = 0.0
    drops: tuple[float, ...] = ()
    factor: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in ("cosine", "step", "constant") or not 0 <= self.warmup < 1:
            raise SpecError(f"a schedule is cosine, step or constant with warmup in [0, 1), got {self}")
        if not (self.floor >= 0 and self.factor > 0 and all(0 <= drop <= 1 for drop in self.drops)):
            raise SpecError(f"a schedule's floor is >= 0, its factor > 0, its drops are shares, got {self}")


@dataclass(frozen=True)
class Phase:
    """A stretch of training.

    Attributes:
        name: shown, logged, and part of checkpoints' names.
        turns: forward and backward passes of every step; their gradients add up.
        epochs: passes over the training data.
        trains: which parameters move: all, the decision nets ("gates"), everything else ("base"), or what
            passes inserted beside decision nets ("inserted").
        base, gates: optimizer settings of either group. Decision nets never take weight decay.
        schedule: of both learning rates.
        clip: largest norm of the gradient; None does not clip.
        average: decay of the moving average of the weights (the teacher); None keeps none.
        frozen_norms: run the evaluation graph, so that norms use their running statistics, dropout is off.
        recalibrate: afterwards, estimate the batch-norm statistics of every choice anew.
        calibrate: before every epoch, shift the decision nets to the recipe's target, where it has one and
            there is validation data: what trains then is what will run.
        keep: which weights go on: the last, or those of the epoch that was best on the validation data.
        adopt_average: the moving average becomes the model's weights at the end.
    """

    name: str
    turns: tuple[Turn, ...]
    epochs: int
    trains: Literal["all", "base", "gates", "inserted"] = "all"
    base: Optimization = field(default_factory=Optimization)
    gates: Optimization = field(default_factory=Optimization)
    schedule: Schedule = field(default_factory=Schedule)
    clip: float | None = None
    average: float | None = None
    frozen_norms: bool = False
    recalibrate: bool = False
    calibrate: bool = field(default=False, metadata={ADDED: True})
    keep: Literal["last", "best"] = "last"
    adopt_average: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or not self.turns:
            raise SpecError(f"phase {self.name!r} needs at least one epoch and one turn")
        if self.trains not in ("all", "base", "gates", "inserted"):
            raise SpecError(f"phase {self.name!r} trains all, base, gates or inserted, not {self.trains!r}")
        if self.clip is not None and not self.clip > 0:
            raise SpecError(f"phase {self.name!r} clips to a norm above 0, got {self.clip}", fix="clip=None")
        if self.average is not None and not 0 <= self.average <= 1:
            raise SpecError(f"phase {self.name!r} averages with a decay in [0, 1], got {self.average}")


@dataclass(frozen=True)
class Recipe:
    """What `fit` does to a model that has the choices of `method`.

    Attributes:
        name: e.g. ``"dsnet"``.
        phases: in order.
        method: the model must hold choices of this method; empty serves any.
        target: share of the source's MACs (or of what else `fit` is told to count), decision nets included,
            that the learned policy shall spend on average; None leaves it to the objectives.
    """

    name: str
    phases: tuple[Phase, ...]
    method: str = ""
    target: float | None = None
