"""A recipe for models of the pass `lcnet`: gates on the frozen network, then both while the budget falls.

    gates   the network is frozen, norms keep their statistics; the budget falls from full cost to half way
    joint   everything trains; the budget falls from there to the target, then holds it
    end     batch-norm statistics are estimated anew; the gates are calibrated to the target where there is
            validation data

Losses, weights and stages of LC-Net ("Fully Dynamic Inference with Deep Neural Networks", 2021) are not known
to us, and its re-implementations have no term for cost at all. The order is the advice of FBS: gates first,
with the network frozen, and "first fine-tune a pretrained model with 100% density, and gradually decrease the
density". The division of the budget and all numbers are ours. Half way was compared with no pressure, a tenth
and all of the way in the first phase, on a toy (six residual blocks, points in the plane, target 0.5, three
seeds each): it was as good as the best for layers and better than the others for channels.

Bits train better than gains in our one comparison (Fashion-MNIST, a small ResNet, half of its MACs): what
scales a branch down can be made up for behind it, so that gains end near 0, where every step switches some.
"""

from __future__ import annotations

from collections.abc import Mapping

from dyncompile.errors import SpecError
from dyncompile.train.budget import Budget
from dyncompile.train.columns import check_share
from dyncompile.train.gains import BatchShaping, RateTargets, RouteConsistency
from dyncompile.train.objectives import Distillation, TaskLoss
from dyncompile.train.phase import Objective, Optimization, Phase, Recipe, Schedule, Turn, View
from dyncompile.train.recipes.parts import Settling


def lcnet(
    *,
    target: float | None = 0.5,
    gate_epochs: int = 1,
    joint_epochs: int = 5,
    ramp: float = 0.5,
    distillation: float = 0.0,
    rates: float | Mapping[str, float] | None = None,
    shaping: float = 0.0,
    consistency: float = 0.0,
    view: View | None = None,
    tau: float = 1.0,
    noise: bool = True,
    quiet: float = 0.4,
    budget: Objective | None = None,
    base: Optimization | None = None,
    gates: Optimization | None = None,
    schedule: Schedule | None = None,
    clip: float | None = None,
    average: float | None = 1.0,
) -> Recipe:
    """Train a trained network with gains or bits to a mean share of its MACs.

    Args:
        target: mean share of the source's MACs that learned routes shall take, decision nets included. None
            leaves the cost to `rates` or `budget`, and nothing is calibrated.
        gate_epochs, joint_epochs: passes over the data.
        ramp: part of either phase over which the budget falls.
        distillation: weight of the soft cross entropy to the full network; 0 leaves it out.
        rates: see `gains.RateTargets`, with its weight of 2; None leaves it out.
        shaping: weight of `gains.BatchShaping`; 0 leaves it out.
        consistency: weight of `gains.RouteConsistency`; 0 leaves it out.
        view: another augmentation that the model trains on, while teachers see the samples as loaded.
        tau, noise: temperature and logistic noise of bits; gains have neither.
        quiet: last part of the second phase in which bits have no noise, so that the budget holds what their
            decisions cost in evaluation.
        budget: another cost term, for both phases.
        base, gates: optimizer settings, AdamW at 1e-3 and at 1e-2.
        schedule: of both phases; cosine, with a tenth of warm-up in the second.
        clip: largest norm of the gradient.
        average: decay of the moving average that teaches in the second phase. At 1 the teacher stays the
            source. Below, and with None (the present weights), it loses what it knew: nothing else trains
            the full network.

    Raises:
        SpecError: settings out of range or in contradiction.
    """
    _check(target, distillation, shaping, consistency, view, tau, quiet)
    terms: dict[str, Objective] = {"task": TaskLoss()}
    if distillation:
        terms["teacher"] = Distillation(weight=distillation)
    if rates is not None:
        terms["rates"] = RateTargets(rates)
    if shaping:
        terms["shaping"] = BatchShaping(weight=shaping)
    if consistency:
        terms["consistency"] = RouteConsistency(consistency)

    def turn(cost: Objective | None, noisy: float) -> Turn:
        policy = Settling(tau, until=noisy if noise else 0.0)
        return Turn(policy, terms if cost is None else {**terms, "budget": cost}, view)

    first, second = _budgets(target, ramp, budget)
    gates = gates or Optimization("adamw", rate=1e-2)
    alone = Phase(
        name="gates",
        turns=(turn(first, 1.0),),
        epochs=gate_epochs,
        trains="gates",
        gates=gates,
        schedule=schedule or Schedule("cosine"),
        clip=clip,
        frozen_norms=True,
    )
    joint = Phase(
        name="joint",
        turns=(turn(second, 1 - quiet),),
        epochs=joint_epochs,
        base=base or Optimization("adamw", rate=1e-3, decay=1e-2),
        gates=gates,
        schedule=schedule or Schedule("cosine", warmup=0.1),
        clip=clip,
        average=average if distillation else None,
        recalibrate=True,
    )
    return Recipe("lcnet", (alone, joint), "lcnet", target)


def _budgets(
    target: float | None, ramp: float, other: Objective | None
) -> tuple[Objective | None, Objective | None]:
    """Cost terms of both phases."""
    if other is not None or target is None:
        return other, other
    half = (1 + target) / 2
    return Budget(half, ramp=ramp), Budget(target, ramp=ramp, start=half)


def _check(
    target: float | None,
    distillation: float,
    shaping: float,
    consistency: float,
    view: View | None,
    tau: float,
    quiet: float,
) -> None:
    if target is not None:
        check_share(target)
    if not 0 <= quiet <= 1:
        raise SpecError(f"quiet is a part of the second phase in [0, 1], got quiet={quiet}")
    if min(distillation, shaping, consistency) < 0 or tau <= 0:
        raise SpecError(
            "weights are at least 0 and a temperature is positive, got "
            f"distillation={distillation}, shaping={shaping}, consistency={consistency}, tau={tau}"
        )
    if consistency and view is None:
        raise SpecError(
            f"consistency={consistency} compares two views of every sample, and no view is given",
            fix="give view=, a function from a batch to another augmentation of it",
        )


RECIPES = (lcnet,)
