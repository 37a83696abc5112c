"""The recipe of DS-Net (CVPR 2021): train a slimmable supernet, then the gates that choose its widths.

What its code does, for comparison: 160 and 40 epochs at batch 512; SGD with Nesterov momentum 0.9 at rate
0.08, cosine; weight decay 1e-4 and 1e-2; label smoothing 0.1; moving average 0.997; two random widths;
Gumbel noise at temperature 1; only the last layer of the gate trains. Ours differs on purpose in defaults
for small budgets, in gates without weight decay, in sparsification of raw logits, and in a budget that is
met instead of pushed down.
"""

from __future__ import annotations

from dyncompile.train.columns import check_share
from dyncompile.train.phase import Objective, Optimization, Recipe, Schedule, View
from dyncompile.train.recipes.parts import Supervision, Teacher, gate_phase
from dyncompile.train.recipes.supernet import supernet


def dsnet(
    *,
    target: float | None = 0.5,
    supernet_epochs: int = 10,
    gate_epochs: int = 3,
    random_widths: int = 2,
    teacher: Teacher = "bootstrap",
    labels: float = 0.0,
    average: float | None = 0.997,
    mixed: bool = False,
    view: View | None = None,
    smoothing: float = 0.0,
    temperature: float = 1.0,
    sparsification: Supervision = "try_best",
    tau: float = 1.0,
    budget: Objective | None = None,
    base: Optimization | None = None,
    gates: Optimization | None = None,
    schedule: Schedule | None = None,
    gate_schedule: Schedule | None = None,
    clip: float | None = None,
) -> Recipe:
    """Stage 1 trains all widths with sandwich steps; stage 2 trains the gates of the frozen network.

    Args:
        target: mean share of the source's MACs that learned routes shall take, gates included. None leaves
            the cost to `budget` and the other terms, and nothing is calibrated.
        supernet_epochs, gate_epochs: passes over the data.
        random_widths, teacher, labels, mixed, view, smoothing, temperature: see `parts.sandwich`. With
            "ensemble" the smallest width learns from several; DS-Net's code had that first and later turned
            it off.
        average: decay of the moving average that teaches; None lets the present weights teach.
        sparsification, tau, budget, gates, gate_schedule: see `parts.gate_phase`. DS-Net's own cost term is
            ``RatioBudget()``.
        base, schedule, clip: optimizer settings of stage 1, see `supernet`.

    Raises:
        SpecError: settings out of range or in contradiction.
    """
    if target is not None:
        check_share(target)
    first = supernet(
        epochs=supernet_epochs,
        random_widths=random_widths,
        teacher=teacher,
        labels=labels,
        average=average,
        mixed=mixed,
        view=view,
        smoothing=smoothing,
        temperature=temperature,
        base=base,
        schedule=schedule,
        clip=clip,
    )
    second = gate_phase(
        epochs=gate_epochs,
        target=target,
        supervision=sparsification,
        tau=tau,
        budget=budget,
        gates=gates,
        schedule=gate_schedule,
    )
    return Recipe("dsnet", (*first.phases, second), "dsnet", target)


RECIPES = (dsnet,)
