"""A recipe for models of the pass `exits`: the network and all its heads are trained together.

    L = L(output) + sum_i weight_i L(early_i) + distillation sum_i H(output, early_i)

A joint weighted loss over all exits is BranchyNet's (2016). The numbers are ours.
"""

from __future__ import annotations

from collections.abc import Mapping

from dyncompile.errors import SpecError
from dyncompile.train.early import EarlyDistillation, EarlyLoss, WarmUp
from dyncompile.train.objectives import TaskLoss
from dyncompile.train.phase import Objective, Optimization, Phase, Recipe, Schedule, Turn, View


def exits(
    *,
    epochs: int = 10,
    weights: float | Mapping[str, float] = 1.0,
    distillation: float = 0.0,
    temperature: float = 1.0,
    smoothing: float = 0.0,
    view: View | None = None,
    base: Optimization | None = None,
    schedule: Schedule | None = None,
    clip: float | None = None,
) -> Recipe:
    """Train a model with heads on the way; ``dc.calibrate_exit`` sets thresholds afterwards.

    Args:
        epochs: passes over the data.
        weights: of the heads' losses, one for all or by the choices' names.
        distillation, temperature: of what heads learn from the final prediction.
        smoothing: of the labels, for the final prediction.
        view: another augmentation of the samples.
        base, schedule, clip: optimizer settings.

    Raises:
        SpecError: settings out of range.
    """
    if distillation < 0 or temperature <= 0:
        raise SpecError(
            f"distillation is at least 0 and a temperature is positive, got {distillation} and {temperature}"
        )
    terms: dict[str, Objective] = {"task": TaskLoss(smoothing=smoothing), "heads": EarlyLoss(weights)}
    if distillation:
        terms["final"] = EarlyDistillation(distillation, temperature)
    phase = Phase(
        name="joint",
        turns=(Turn(WarmUp(), terms, view, execution="dense"),),
        epochs=epochs,
        base=base or Optimization("adamw", rate=1e-3, decay=1e-2),
        schedule=schedule or Schedule("cosine", warmup=0.1),
        clip=clip,
    )
    return Recipe("exits", (phase,), "exits")


RECIPES = (exits,)
