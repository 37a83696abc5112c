"""What a run of the demonstration can be asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dyncompile.errors import SpecError

Watch = Callable[[str, int, int], None]
"""Called as ``watch(stage, done, total)`` while a stage makes progress."""


@dataclass(frozen=True, slots=True)
class DemoConfig:
    """Settings of one run; everything random follows `seed`.

    Attributes:
        epochs: passes over the training digits for the source network; the best on validation is kept.
        slicing_epochs: passes for the widths together, from the trained source on.
        gate_epochs: passes for the decision net that picks a width for each image.
        target: share of the source's MACs that it shall spend on average.
        pairs: interleaved measurements of latency per width.
        batch: rows per training step and per measured call. Calls of single 8x8 images mostly measure Python.
        method: the pass that is applied, as a spec string.
    """

    epochs: int = 15
    slicing_epochs: int = 8
    gate_epochs: int = 8
    target: float = 0.5
    pairs: int = 60
    batch: int = 64
    seed: int = 0
    method: str = "dsnet(start=1)"

    def __post_init__(self) -> None:
        low = [
            name
            for name in ("epochs", "slicing_epochs", "gate_epochs", "pairs", "batch")
            if getattr(self, name) < 1
        ]
        if low:
            raise SpecError(f"must be at least 1: {', '.join(low)}")
