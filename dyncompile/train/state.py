"""The state of training as data: safetensors for tensors, ``state.json`` for the rest; no pickle.

A checkpoint holds

    model.safetensors, program.json   the model, as `dyncompile.save` writes it
    average.safetensors               the moving average of the weights, where the phase keeps one
    optimizer.safetensors             ``exp_avg/stem.weight`` and the like; empty between phases
    state.json                        position, objectives' memories, loss scale, best epoch, what was trained

Random numbers and the order of the data are functions of seed and position (`dyncompile.train.randomness`),
so the position is all there is to save of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from dyncompile.checkpoint import encode_weights, load_weights, save
from dyncompile.errors import CheckpointError
from dyncompile.files import replace_file
from dyncompile.runtime.model import DynamicModel
from dyncompile.stored.description import read_description
from dyncompile.torchlib import encode_tensors, open_tensors, read_tensor
from dyncompile.train.average import Average
from dyncompile.train.optim import Optimizers
from dyncompile.train.step import Memories

FORMAT, VERSION = "dyncompile-training", 1
AVERAGE, OPTIMIZER, STATE = "average.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True, slots=True)
class Position:
    """How far training is: in `phase`, `epoch` of it, `step` of that; `total` steps over all phases.

    After the last epoch of a phase `epoch` is their number until the phase's closing work is done; after the
    last phase `phase` is their number.
    """

    phase: int = 0
    epoch: int = 0
    step: int = 0
    total: int = 0

    @property
    def begins(self) -> bool:
        """Whether it is the beginning of a phase."""
        return self.epoch == self.step == 0


@dataclass(frozen=True, slots=True)
class Best:
    """The best epoch of a phase so far: its validation number and the checkpoint that holds its weights."""

    value: float
    checkpoint: str


@dataclass(frozen=True)
class TrainingState:
    """What ``state.json`` holds.

    Attributes:
        plan: what is trained and how: it must be the same to go on.
        memories: per process, what each term keeps between steps.
        scale: the fp16 loss scale.
    """

    plan: Mapping[str, Any]
    position: Position
    memories: tuple[Memories, ...] = ()
    scale: Mapping[str, Any] | None = None
    best: Best | None = None

    def memory(self, rank: int) -> Memories:
        """What this process's terms kept; process 0's where there are more processes than before."""
        known = self.memories[rank if rank < len(self.memories) else 0] if self.memories else {}
        return {key: dict(values) for key, values in known.items()}

    def at(self, position: Position) -> TrainingState:
        """The same, elsewhere."""
        return replace(self, position=position)


def write_state(
    folder: Path,
    state: TrainingState,
    dyn: DynamicModel,
    average: Average | None,
    optimizers: Optimizers | None,
) -> None:
    """Fill a checkpoint's folder; every file is flushed to disk."""
    save(dyn, folder)
    if average is not None:
        replace_file(folder / AVERAGE, encode_weights(average.model))
    tensors = {} if optimizers is None else optimizers.state()
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    replace_file(folder / OPTIMIZER, encode_tensors(plain))
    described = {"format": FORMAT, "version": VERSION, **asdict(state)}
    replace_file(folder / STATE, (json.dumps(described, indent=1) + "\n").encode())


def read_state(folder: Path, plan: Mapping[str, Any]) -> TrainingState:
    """The state in a checkpoint. Raises CheckpointError where it is damaged or of another training."""
    path = folder / STATE
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        if found["format"] != FORMAT or found["version"] > VERSION:
            raise CheckpointError(f"{path} is not a training state that this release reads")
        best = found["best"]
        state = TrainingState(
            plan=found["plan"],
            position=Position(**found["position"]),
            memories=tuple(found["memories"]),
            scale=found["scale"],
            best=None if best is None else Best(**best),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}") from None
    _check_plan(path, state.plan, plan)
    return state


def _check_plan(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    plain: dict[str, Any] = json.loads(json.dumps(wanted))
    keys = sorted({*found, *plain})
    apart = [
        f"{key}: {found.get(key)!r} in the checkpoint, {plain.get(key)!r} now"
        for key in keys
        if found.get(key) != plain.get(key)
    ]
    if apart:
        raise CheckpointError.of_all(
            f"{path.parent} belongs to another training",
            apart,
            fix="go on with the same model, recipe and data, or give another directory",
        )


def load_model(folder: Path, dyn: DynamicModel, *, averaged: bool = False) -> None:
    """The weights in a checkpoint, or their moving average. Raises CheckpointError."""
    load_weights(dyn, folder / (AVERAGE if averaged else read_description(folder)["weights"]))


def load_optimizers(folder: Path, optimizers: Optimizers) -> None:
    """The optimizers' state in a checkpoint. Raises CheckpointError."""
    path = folder / OPTIMIZER
    try:
        with open_tensors(path) as file:
            tensors: dict[str, Tensor] = {key: read_tensor(file, key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    optimizers.load(tensors)
