"""The recipe of the Dynamic Resolution Network (NeurIPS 2021): all sizes first, then with the predictor.

    pretrain   every image at every size, losses summed; no predictor
    joint      network and predictor together: task loss of the size that each image takes, and a cost term
    gates      the predictor alone on a frozen network, told what each size is worth to an image (ours, left
               out by default)
    end        batch-norm statistics are estimated anew at every size; the predictor is calibrated to the
               target where there is validation data

The paper, for comparison: 70 and 100 epochs at batch 256; SGD with momentum 0.9 at rate 0.1, divided by 10
every 20 and 30 epochs, 3 epochs of warm-up in the second stage; weight decay 1e-4; the predictor, which
starts from scratch, at a tenth of the rate. Its cost term is ``HingeBudget(target, weight=0.2)``; its
temperature is not stated. Defaults here are ours, for trained weights and small budgets: AdamW, cosine, a
budget that is met.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dyncompile.errors import SpecError
from dyncompile.policies import Forced, Learned
from dyncompile.train.budget import Budget
from dyncompile.train.columns import check_share
from dyncompile.train.objectives import TaskLoss
from dyncompile.train.phase import Clock, Objective, Optimization, Phase, Recipe, Schedule, Turn
from dyncompile.train.recipes.parts import Always, Supervision, gate_phase


@dataclass(frozen=True, slots=True)
class Column:
    """All samples at one column of a choice of so many; other choices at full capacity."""

    choice: str
    column: int
    width: int

    def __call__(self, clock: Clock) -> Forced:
        """The same at every step."""
        row = torch.zeros(1, self.width)
        row[0, self.column] = 1
        return Forced({self.choice: row})


def resolution(
    *,
    target: float | None = 0.6,
    pretrain_epochs: int = 5,
    joint_epochs: int = 5,
    gate_epochs: int = 0,
    supervision: Supervision = "worth",
    sizes: int = 3,
    choice: str = "resolution",
    smoothing: float = 0.0,
    tau: float = 1.0,
    noise: bool = True,
    budget: Objective | None = None,
    base: Optimization | None = None,
    gates: Optimization | None = None,
    schedule: Schedule | None = None,
    clip: float | None = None,
) -> Recipe:
    """Train a network at several resolutions, and the net that picks one of them per image.

    Args:
        target: mean share of the source's MACs that learned routes shall take, the predictor included. None
            leaves the cost to `budget`, and nothing is calibrated.
        pretrain_epochs: passes over the data at all sizes; a step takes as many passes forward and backward
            as there are sizes. 0 leaves the phase out.
        joint_epochs: passes over the data at the sizes that the predictor picks. 0 leaves the phase out.
        gate_epochs: passes over the data for the predictor alone, supervised as in `gate_phase`; with "worth"
            a step takes a forward pass at every size. 0 leaves the phase out.
        supervision: of these passes.
        sizes: how many the model has, the native one included.
        choice: the pass's name.
        smoothing: label smoothing of the task loss.
        tau, noise: temperature and Gumbel noise of the decision; straight-through.
        budget: another cost term than `Budget`.
        base, gates: optimizer settings of the network and of the predictor, AdamW at 1e-3 both.
        schedule: of both phases; cosine with a tenth of warm-up.
        clip: largest norm of the gradient.

    Raises:
        SpecError: settings out of range.
    """
    if target is not None:
        check_share(target)
    epochs = {"pretrain": pretrain_epochs, "joint": joint_epochs, "gates": gate_epochs}
    if sizes < 2 or tau <= 0 or min(epochs.values()) < 0:
        raise SpecError(
            "sizes is at least 2, a temperature positive, epochs at least 0, "
            f"got sizes={sizes}, tau={tau}, epochs={epochs}"
        )
    if not joint_epochs + gate_epochs:
        raise SpecError("no phase trains the predictor", fix="give joint_epochs or gate_epochs")
    loss = TaskLoss(smoothing=smoothing)
    base = base or Optimization("adamw", rate=1e-3, decay=1e-2)
    schedule = schedule or Schedule("cosine", warmup=0.1)
    phases: list[Phase] = []
    if pretrain_epochs:
        every = (Turn(Column(choice, k, sizes), {f"size {k}": loss}) for k in reversed(range(sizes)))
        first = Phase(
            name="pretrain",
            turns=tuple(every),
            epochs=pretrain_epochs,
            trains="base",
            base=base,
            schedule=schedule,
            clip=clip,
            recalibrate=True,
        )
        phases.append(first)
    if joint_epochs:
        terms: dict[str, Objective] = {"task": loss}
        if budget is not None or target is not None:
            terms["budget"] = budget or Budget(target or 1.0)
        joint = Phase(
            name="joint",
            turns=(Turn(Always(Learned(tau, hard=True, noise=noise)), terms),),
            epochs=joint_epochs,
            base=base,
            gates=gates or Optimization("adamw", rate=1e-3),
            schedule=schedule,
            clip=clip,
            recalibrate=True,
        )
        phases.append(joint)
    if gate_epochs:
        alone = gate_phase(
            epochs=gate_epochs, target=target, supervision=supervision, tau=tau, budget=budget, gates=gates
        )
        phases.append(alone)
    return Recipe("resolution", tuple(phases), "resolution", target)


RECIPES = (resolution,)
