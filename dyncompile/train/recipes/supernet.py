"""Train all sub-networks of a model together, without decision nets."""

from __future__ import annotations

from dyncompile.train.phase import Optimization, Recipe, Schedule, View
from dyncompile.train.recipes.parts import Teacher, sandwich, supernet_phase


def supernet(
    *,
    epochs: int = 10,
    random_widths: int = 2,
    teacher: Teacher = "bootstrap",
    labels: float = 0.0,
    average: float | None = 0.997,
    mixed: bool = False,
    view: View | None = None,
    smoothing: float = 0.0,
    temperature: float = 1.0,
    base: Optimization | None = None,
    schedule: Schedule | None = None,
    clip: float | None = None,
    method: str = "",
) -> Recipe:
    """Sandwich training of any model with choices, e.g. ``dynamize(model, "dsnet(gate=False)")``.

    Args:
        epochs: passes over the data; a step takes 2 + `random_widths` passes forward and backward.
        random_widths, teacher, labels, mixed, view, smoothing, temperature: see `parts.sandwich`.
        average: decay of the moving average that teaches; 0.997 in DS-Net's code, at 2,500 steps an epoch.
            None lets the present weights teach (in-place distillation).
        base, schedule, clip: optimizer settings. Defaults are ours, for starting from trained weights on a
            small budget: AdamW at 2e-3, a tenth of warm-up, cosine.
        method: the method that the model must have been made by; empty serves any.

    Raises:
        SpecError: settings that contradict each other.
    """
    turns = sandwich(
        random_widths=random_widths,
        teacher=teacher,
        labels=labels,
        mixed=mixed,
        view=view,
        smoothing=smoothing,
        temperature=temperature,
    )
    phase = supernet_phase(turns, epochs=epochs, average=average, base=base, schedule=schedule, clip=clip)
    return Recipe("supernet", (phase,), method)


RECIPES = (supernet,)
