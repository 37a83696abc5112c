"""Parts of recipes that no method owns: sandwich turns, a supernet phase, a phase that trains decision nets.

Sandwich rule: every step trains the largest, the smallest and some random sub-networks (Universally Slimmable
Networks, ICCV 2019). In-place bootstrapping: all but the largest learn from the moving average of the
weights at full capacity; "ensemble" lets the smallest learn from the mean of the full and the random ones
(both DS-Net, CVPR 2021, whose code runs largest, random, smallest in this order with all weights 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dyncompile.errors import SpecError
from dyncompile.policies import Full, Learned, Policy, Sampled, Smallest
from dyncompile.train.budget import Budget
from dyncompile.train.objectives import Consistency, Distillation, TaskLoss
from dyncompile.train.phase import Clock, Objective, Optimization, Phase, Schedule, Turn, View
from dyncompile.train.sparsification import MODES, ExpectedLoss, Sparsification
from dyncompile.train.worth import Worth

Teacher = Literal["bootstrap", "ensemble", "none"]
Supervision = Literal["try_best", "give_up", "oracle", "expected", "worth", "none"]

TEACHERS = ("bootstrap", "ensemble", "none")
SUPERVISIONS = (*MODES, "expected", "worth", "none")

_STRIDE = 1009
"""Seeds of one step's draws are neighbors, those of different steps lie this far apart."""


@dataclass(frozen=True, slots=True)
class Always:
    """The same policy at every step."""

    policy: Policy

    def __call__(self, clock: Clock) -> Policy:
        """It."""
        return self.policy


@dataclass(frozen=True, slots=True)
class Settling:
    """What decision nets say, with noise until this part of the phase and as it is from there on.

    Noise lets gates that are nearly sure try the other way; but the mean cost under noise is not that of the
    decisions themselves, and the network learns to serve routes that evaluation never takes.
    """

    tau: float = 1.0
    until: float = 1.0

    def __call__(self, clock: Clock) -> Policy:
        """Hard decisions."""
        return Learned(self.tau, hard=True, noise=clock.progress < self.until)


@dataclass(frozen=True, slots=True)
class Draw:
    """Uniformly random columns, anew at every step; `number` tells several draws of one step apart."""

    number: int = 0
    per_sample: bool = False

    def __call__(self, clock: Clock) -> Policy:
        """The same draw on every process."""
        return Sampled(clock.seed * _STRIDE + self.number, self.per_sample)


def sandwich(
    *,
    random_widths: int = 2,
    teacher: Teacher = "bootstrap",
    labels: float = 0.0,
    mixed: bool = False,
    view: View | None = None,
    smoothing: float = 0.0,
    temperature: float = 1.0,
) -> tuple[Turn, ...]:
    """Turns of a supernet step: largest, random ones, smallest.

    Args:
        random_widths: random turns per step.
        teacher: "bootstrap", "ensemble", or "none": all learn from labels.
        labels: weight of the task loss that all but the largest learn from beside the teacher; 0 in DS-Net's
            code, whose teacher has seen the labels for 160 epochs.
        mixed: one more random turn in which every sample draws its own columns. Batch norms then see fewer
            rows per column.
        view: another augmentation for all turns but the largest, which learn from what the teacher says of
            the samples as loaded.
        smoothing: label smoothing of the largest.
        temperature: of the distillation.

    Raises:
        SpecError: an unknown teacher, a negative number, or an ensemble of nothing.
    """
    if teacher not in TEACHERS:
        raise SpecError(f"a teacher is one of {', '.join(TEACHERS)}, got {teacher!r}")
    if random_widths < 0 or labels < 0:
        raise SpecError(f"random_widths and labels are at least 0, got {random_widths} and {labels}")
    if labels and teacher == "none":
        raise SpecError("without a teacher all learn from labels", fix="leave out labels, or give a teacher")
    draws = tuple(Draw(i) for i in range(random_widths))
    if teacher == "ensemble" and (not draws or view is not None):
        raise SpecError(
            "an ensemble is of the full network and random ones, on the samples as loaded",
            fix="give random_widths >= 1 and no view, or teacher='bootstrap'",
        )
    label = TaskLoss(smoothing=smoothing)
    student: Objective = label
    if teacher != "none":
        student = (
            Distillation(temperature=temperature) if view is None else Consistency(temperature=temperature)
        )
    last = Distillation(temperature=temperature, others=draws) if teacher == "ensemble" else student
    beside = {"labels": TaskLoss(labels)} if labels else {}
    every = (*draws, Draw(random_widths, per_sample=True)) if mixed else draws
    return (
        Turn(Always(Full()), {"largest": label}),
        *(Turn(draw, {"random": student, **beside}, view) for draw in every),
        Turn(Always(Smallest()), {"smallest": last, **beside}, view),
    )


def supernet_phase(
    turns: tuple[Turn, ...],
    *,
    epochs: int,
    average: float | None = 0.997,
    base: Optimization | None = None,
    schedule: Schedule | None = None,
    clip: float | None = None,
) -> Phase:
    """Train everything but decision nets, then estimate the batch-norm statistics of every column anew."""
    return Phase(
        name="supernet",
        turns=turns,
        epochs=epochs,
        trains="base",
        base=base or Optimization("adamw", rate=2e-3, decay=1e-2),
        schedule=schedule or Schedule("cosine", warmup=0.1),
        clip=clip,
        average=average,
        recalibrate=True,
    )


def gate_phase(
    *,
    epochs: int,
    target: float | None,
    supervision: Supervision = "try_best",
    tau: float = 1.0,
    budget: Objective | None = None,
    gates: Optimization | None = None,
    schedule: Schedule | None = None,
) -> Phase:
    """Train decision nets on a frozen network: task loss, supervision of the gates, budget.

    Decisions are hard with Gumbel noise (straight-through); norms keep their statistics. Supervision by worth
    stands alone: it needs no noise and no budget, since calibration sets the price of a column afterwards.

    Args:
        epochs: of this phase.
        target: mean share of the source's MACs for `Budget`; None without `budget` leaves cost free.
        supervision: a mode of `Sparsification`, "expected" for `ExpectedLoss`, "worth" for `Worth` (one gate
            only), or "none".
        tau: temperature of the relaxation; 1 and constant in DS-Net's code.
        budget: another cost term.
        gates, schedule: optimizer settings.

    Raises:
        SpecError: an unknown supervision, or a target outside (0, 1].
    """
    if supervision not in SUPERVISIONS:
        raise SpecError(f"sparsification is one of {', '.join(SUPERVISIONS)}, got {supervision!r}")
    if tau <= 0:
        raise SpecError(f"a temperature is positive, got tau={tau}")
    terms: dict[str, Objective] = {"task": TaskLoss()}
    turn = Turn(Always(Learned(tau, hard=True, noise=True)), terms)
    if supervision == "worth":
        turn = Turn(Always(Learned(tau)), {"gates": Worth()}, execution="sparse")
    elif supervision == "expected":
        terms["gates"] = ExpectedLoss()
    elif supervision != "none":
        terms["gates"] = Sparsification(supervision)
    if budget is None and target is not None:
        budget = Budget(target)
    if budget is not None:
        terms["budget"] = budget
    return Phase(
        name="gates",
        turns=(turn,),
        epochs=epochs,
        trains="gates",
        gates=gates or Optimization("adamw", rate=1e-2),
        schedule=schedule or Schedule("cosine"),
        frozen_norms=True,
    )
