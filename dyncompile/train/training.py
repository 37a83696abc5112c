"""A run of `fit` under way: its phases in order, its checkpoints, its history."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from dyncompile.cost import Cost
from dyncompile.errors import CheckpointError
from dyncompile.runtime.model import DynamicModel
from dyncompile.train.accelerated import World
from dyncompile.train.average import Average
from dyncompile.train.budget import holds_budget
from dyncompile.train.calibrate import Calibration, CalibrationWarning, calibrate
from dyncompile.train.checkpoints import Checkpoints, checkpoint_name
from dyncompile.train.data import Feed
from dyncompile.train.diagnostics import CollapseWarning, summarize
from dyncompile.train.distributed import broadcast_state
from dyncompile.train.evaluation import Metric, evaluate
from dyncompile.train.history import EpochRecord, History, StepRecord, read_history
from dyncompile.train.optim import Optimizers
from dyncompile.train.phase import Loss, Recipe
from dyncompile.train.plan import plain_values
from dyncompile.train.progress import Watch
from dyncompile.train.randomness import derive
from dyncompile.train.state import Best, Position, TrainingState, load_model, read_state, write_state
from dyncompile.train.step import Memories


@dataclass(frozen=True)
class Setting:
    """What stays the same throughout a run.

    Attributes:
        cost: what targets and budgets count; None is MACs.
        plan: what identifies this training when it is resumed.
        feed: this process's share of the training data.
        validation: its share of the validation data; None without any.
        every: steps between checkpoints within an epoch; None writes them after epochs only.
    """

    dyn: DynamicModel
    recipe: Recipe
    world: World
    loss: Loss
    metric: Metric
    cost: Cost | None
    plan: dict[str, Any]
    seed: int
    feed: Feed
    validation: Feed | None
    checkpoints: Checkpoints | None
    every: int | None
    watch: Watch


class Training:
    """The state of a run between phases.

    Attributes:
        history: what happened so far.
        state: what the newest checkpoint holds, or would hold without a directory.
        total: optimizer steps that are done, over all phases.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.history = History(setting.recipe.name)
        self.state = TrainingState(setting.plan, Position())
        self.total = 0
        self._warned: set[str] = set()

    # -- checkpoints --------------------------------------------------------------------------

    def resume(self, *, allowed: bool) -> Path | None:
        """Go on from the newest checkpoint: weights and position; returns its folder.

        Raises:
            CheckpointError: it is damaged, of another training, or resuming is not `allowed`.
        """
        world, checkpoints = self.setting.world, self.setting.checkpoints
        if checkpoints is None:
            return None
        if world.main:
            checkpoints.clean()
        world.barrier()
        folder = world.gather(checkpoints.newest())[0]
        if folder is None:
            return None
        if not allowed:
            raise CheckpointError(
                f"{checkpoints.directory} holds checkpoints already, the newest is {folder.name}",
                fix="resume, or give another directory",
            )
        self.state = read_state(folder, self.setting.plan)
        load_model(folder, self.setting.dyn)
        world.load_scale(self.state.scale)
        position = self.state.position
        self.total = position.total
        done = sum(phase.epochs for phase in self.setting.recipe.phases[: position.phase]) + position.epoch
        past = read_history(checkpoints.directory, self.setting.recipe.name)
        self.history = past.until(position.total, done)
        return folder

    def save(
        self,
        position: Position,
        memories: Memories | None = None,
        best: Best | None = None,
        average: Average | None = None,
        optimizers: Optimizers | None = None,
    ) -> None:
        """Move to `position` and write a checkpoint of it, where there is a directory."""
        world, checkpoints = self.setting.world, self.setting.checkpoints
        gathered = tuple(world.gather(memories or {}))
        self.state = TrainingState(self.setting.plan, position, gathered, world.scale, best)
        if checkpoints is None:
            return
        if world.main:
            self.history.write(checkpoints.directory)
            checkpoints.write(
                self.name_of(position),
                lambda folder: write_state(folder, self.state, self.setting.dyn, average, optimizers),
            )
            checkpoints.prune([] if best is None else [best.checkpoint])
        world.barrier()

    def name_of(self, position: Position) -> str:
        """The name of the checkpoint at a position."""
        phases = self.setting.recipe.phases
        label = phases[position.phase].name if position.phase < len(phases) else "end"
        return checkpoint_name(position.total, position.phase, label)

    @property
    def last_checkpoint(self) -> str:
        """The newest checkpoint, in words."""
        checkpoints = self.setting.checkpoints
        newest = None if checkpoints is None else checkpoints.newest()
        return "there is no checkpoint" if newest is None else f"the last good checkpoint is {newest}"

    # -- numbers ------------------------------------------------------------------------------

    def note_step(self, record: StepRecord) -> None:
        """Put a step on record and hand it to the trackers."""
        self.history.steps.append(record)
        self.total += 1
        values = {f"train/{key}": value for key, value in record.terms.items()}
        values |= {f"rate/{key}": value for key, value in record.rates.items()}
        self.setting.world.log({**values, "train/sum": record.loss, "train/macs": record.macs}, record.step)

    def note_epoch(self, record: EpochRecord) -> None:
        """Put an epoch on record and hand it to the trackers."""
        self.history.epochs.append(record)
        values = {f"validation/{key}": value for key, value in record.validation.items()}
        if values:
            self.setting.world.log(values, record.step - 1)

    def validate(self, dyn: DynamicModel, *, learning: bool) -> tuple[dict[str, float], dict[str, Any]]:
        """(numbers, use of decisions) of a model on the validation data; both empty without any.

        Decision nets that are `learning` are watched for collapse.
        """
        one = self.setting
        if one.validation is None:
            return {}, {}
        routes: list[Any] = []
        batches = one.validation.epoch(derive(one.seed, "validation"))
        numbers = evaluate(dyn, batches, one.loss, one.metric, one.world, routes.append)
        gathered = [route for part in one.world.gather(routes) for route in part]
        if not dyn.gated:
            return numbers, {}
        summary = summarize(gathered, dyn.choices)
        if learning:
            self._warn(summary.warnings())
        return numbers, asdict(summary)

    def _warn(self, messages: Sequence[str]) -> None:
        """Every message once per run, on the main process."""
        for message in messages:
            if message not in self._warned and self.setting.world.main:
                warnings.warn(message, CollapseWarning, stacklevel=2)
            self._warned.add(message)

    # -- beginning and end --------------------------------------------------------------------

    def start(self) -> None:
        """Tell the trackers; every process takes process 0's weights; the metric is tried."""
        self.setting.world.start_trackers(plain_values(self.setting.plan))
        broadcast_state(self.setting.dyn, self.setting.world)
        self._try_metric()

    def _try_metric(self) -> None:
        """One batch, so that a metric that does not fit the data is refused before anything is trained."""
        one = self.setting
        if one.validation is not None:
            first = islice(one.validation.epoch(derive(one.seed, "validation")), 1)
            evaluate(one.dyn, first, one.loss, one.metric, one.world, lambda _: None)

    def calibrate(self) -> Calibration | None:
        """Shift the decision nets to the recipe's target, where it has one and there is data to do it on."""
        one = self.setting
        if one.recipe.target is None or not one.dyn.gated or one.validation is None:
            return None
        batches = one.validation.epoch(derive(one.seed, "validation"))
        return calibrate(one.dyn, batches, one.recipe.target, cost=one.cost)

    def finish(self) -> None:
        """Calibrate once more and put it on record.

        That moves far by design where nothing held a budget; where something did, it has failed to.
        """
        found = self.calibrate()
        if found is None:
            return
        self.history.calibration = asdict(found)
        if found.is_far and holds_budget(self.setting.recipe) and self.setting.world.main:
            warnings.warn(found.warning, CalibrationWarning, stacklevel=2)
