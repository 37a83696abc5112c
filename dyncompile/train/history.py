"""What happened in training, as data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dyncompile.errors import CheckpointError
from dyncompile.files import replace_file

HISTORY = "history.json"


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimizer step.

    Attributes:
        step: number over all phases, from 0.
        phase, epoch: name of the phase, epoch within it.
        terms: every term of the loss by key, means over the step's samples.
        rates: learning rates of the base and of the decision nets.
        macs: mean share of the source's MACs over the step's turns.
        seconds: wall time.
    """

    step: int
    phase: str
    epoch: int
    terms: Mapping[str, float]
    rates: Mapping[str, float]
    macs: float
    seconds: float

    @property
    def loss(self) -> float:
        """What was minimized: the sum of all terms."""
        return sum(self.terms.values())


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One epoch.

    Attributes:
        step: steps over all phases that were done by its end.
        phase, epoch: name of the phase, epoch within it.
        validation: ``metric``, ``loss``, ``macs`` (share) on the validation data; empty without any.
        routing: how decisions were used on the validation data, as plain values.
        seconds: wall time of the epoch, validation included.
    """

    step: int
    phase: str
    epoch: int
    validation: Mapping[str, float]
    routing: Mapping[str, Any]
    seconds: float


@dataclass
class History:
    """What `fit` returns, and keeps in ``history.json`` beside its checkpoints.

    Attributes:
        recipe: its name.
        steps, epochs: in order.
        calibration: how the decision nets were shifted to the target at the end, as plain values.
    """

    recipe: str
    steps: list[StepRecord] = field(default_factory=list[StepRecord])
    epochs: list[EpochRecord] = field(default_factory=list[EpochRecord])
    calibration: Mapping[str, Any] | None = None

    @property
    def losses(self) -> list[float]:
        """The loss of every step."""
        return [step.loss for step in self.steps]

    @property
    def seconds(self) -> float:
        """Wall time of all epochs, interruptions not counted."""
        return sum(epoch.seconds for epoch in self.epochs)

    def write(self, directory: Path) -> None:
        """Write ``history.json``; it is replaced as a whole."""
        replace_file(directory / HISTORY, (json.dumps(asdict(self), indent=None) + "\n").encode())

    def until(self, step: int, epochs: int) -> History:
        """The first `step` steps and `epochs` epochs."""
        return History(self.recipe, self.steps[:step], self.epochs[:epochs], self.calibration)


def read_history(directory: Path, recipe: str) -> History:
    """The history in a directory; an empty one where there is none. Raises CheckpointError."""
    path = directory / HISTORY
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        return History(
            recipe,
            [StepRecord(**one) for one in found["steps"]],
            [EpochRecord(**one) for one in found["epochs"]],
            found["calibration"],
        )
    except FileNotFoundError:
        return History(recipe)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged: {error}", fix="delete it: training goes on without the past's numbers"
        ) from None
