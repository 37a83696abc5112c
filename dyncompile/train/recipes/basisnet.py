"""A recipe for models of the pass `basisnet`: preview, coefficients and bases are trained together.

    L = L(specialist) + preview_weight L(preview) + distillation (H(teacher, specialist) + ... preview)

That both stages are trained jointly, end to end, is in BasisNet's abstract ("Two-stage Model Synthesis for
Efficient Inference", 2021). The form of the loss, the warm-up of coefficients from uniform and the dropout of
bases are what we recall of it; no number here is known to be the paper's. Nobody leaves early while training;
``dc.calibrate_exit`` sets thresholds afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dyncompile.errors import SpecError
from dyncompile.train.early import EarlyLoss, Taught, WarmUp
from dyncompile.train.objectives import TaskLoss
from dyncompile.train.phase import Objective, Optimization, Phase, Recipe, Schedule, Turn, View


def basisnet(
    *,
    epochs: int = 10,
    preview_weight: float = 1.0,
    teacher: Callable[..., Any] | None = None,
    distillation: float = 1.0,
    temperature: float = 1.0,
    warmup: float = 0.2,
    dropout: float = 0.0,
    smoothing: float = 0.0,
    view: View | None = None,
    base: Optimization | None = None,
    gates: Optimization | None = None,
    schedule: Schedule | None = None,
    clip: float | None = None,
) -> Recipe:
    """Train a model with a preview and mixed weights.

    Args:
        epochs: passes over the data.
        preview_weight: of the preview's own loss; 0 lets it learn through the coefficients alone.
        teacher: a trained network that both stages learn from besides the labels.
        distillation, temperature: of what the teacher says; the preview's part has `preview_weight`, too.
        warmup: part of training over which coefficients go from uniform to what the net says.
        dropout: probability that a sample does without a basis.
        smoothing: of the labels, for the specialist.
        view: another augmentation of the samples.
        base, gates: optimizer settings; coefficients' nets are gates, preview and bases belong to the base.
        schedule, clip: optimizer settings.

    Raises:
        SpecError: settings out of range.
    """
    if min(preview_weight, distillation) < 0 or temperature <= 0:
        raise SpecError(
            "weights are at least 0 and a temperature is positive, got "
            f"preview_weight={preview_weight}, distillation={distillation}, temperature={temperature}"
        )
    terms: dict[str, Objective] = {"specialist": TaskLoss(smoothing=smoothing)}
    if preview_weight:
        terms["preview"] = EarlyLoss(preview_weight)
    if teacher is not None and distillation:
        terms["teacher"] = Taught(teacher, distillation, temperature, preview_weight)
    turn = Turn(WarmUp(warmup, dropout), terms, view, execution="dense")
    phase = Phase(
        name="joint",
        turns=(turn,),
        epochs=epochs,
        base=base or Optimization("adamw", rate=1e-3, decay=1e-2),
        gates=gates or Optimization("adamw", rate=1e-3),
        schedule=schedule or Schedule("cosine", warmup=0.1),
        clip=clip,
    )
    return Recipe("basisnet", (phase,), "basisnet")


RECIPES = (basisnet,)
