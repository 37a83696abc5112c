"""One phase: its steps, epochs, and what is done when they are over."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dyncompile.deploy.recalibrate import recalibrate
from dyncompile.errors import TrainingError
from dyncompile.train.average import Average
from dyncompile.train.distributed import average_gradients, average_statistics, statistics_of
from dyncompile.train.history import EpochRecord, StepRecord
from dyncompile.train.optim import Optimizers, moving, trainable
from dyncompile.train.phase import Batch, Clock
from dyncompile.train.progress import Update
from dyncompile.train.randomness import derive, seed_all
from dyncompile.train.state import Best, Position, load_model, load_optimizers
from dyncompile.train.step import Outcome, Turns
from dyncompile.train.training import Training


def run_phase(training: Training, index: int, folder: Path | None) -> None:
    """Run phase number `index` from where `training` stands; `folder` holds a checkpoint within the phase.

    Raises:
        TrainingError: a loss is not finite.
    """
    dyn, phase = training.setting.dyn, training.setting.recipe.phases[index]
    with moving(dyn, trainable(dyn, phase)):
        loop = _Loop(training, index)
        if folder is not None:
            loop.restore(folder)
        for epoch in range(training.state.position.epoch, phase.epochs):
            loop.epoch(epoch)
    loop.close()


class _Loop:
    """The moving parts of a phase."""

    def __init__(self, training: Training, index: int) -> None:
        one = training.setting
        self._training, self._setting, self._index = training, one, index
        self._phase = one.recipe.phases[index]
        self._dyn, self._world = one.dyn, one.world
        decay = self._phase.average
        self._average = None if decay is None else Average(one.dyn, decay)
        self._optimizers = Optimizers(one.dyn, self._phase)
        self._turns = Turns(one.dyn, self._phase, one.loss, one.world, self._average, one.cost)
        self._statistics = statistics_of(one.dyn)
        self._per_epoch = one.feed.stream.steps
        self._best: Best | None = None
        self._kept: dict[str, Tensor] = {}
        self._validation: dict[str, float] = {}

    def restore(self, folder: Path) -> None:
        """Everything but the model's weights from a checkpoint."""
        state = self._training.state
        self._turns.memories.update(state.memory(self._world.rank))
        self._best = state.best
        load_optimizers(folder, self._optimizers)
        if self._average is not None and not state.position.begins:  # it begins as the weights
            load_model(folder, self._average.model, averaged=True)

    # -- steps --------------------------------------------------------------------------------

    def epoch(self, epoch: int) -> None:
        """The rest of an epoch, its validation, its checkpoint."""
        start = self._training.state.position.step
        if self._phase.calibrate and start == 0:
            self._training.calibrate()
        order = derive(self._setting.seed, "order", self._index, epoch)
        for step, batches in enumerate(self._setting.feed.steps(order, start), start):
            self._step(epoch, step, batches)
            last = step + 1 == self._per_epoch
            if self._setting.every and self._total % self._setting.every == 0 and not last:
                self._save(Position(self._index, epoch, step + 1, self._total))
        began = time.perf_counter()
        validation, routing = self._validate()
        here = (self._phase.name, epoch)
        own = [one.seconds for one in self._training.history.steps if (one.phase, one.epoch) == here]
        seconds = sum(own) + time.perf_counter() - began
        record = EpochRecord(self._total, *here, validation, routing, seconds)
        self._training.note_epoch(record)
        self._save(Position(self._index, epoch + 1, 0, self._total))

    def _step(self, epoch: int, step: int, batches: Sequence[Batch]) -> None:
        began = time.perf_counter()
        done, steps = epoch * self._per_epoch + step, self._phase.epochs * self._per_epoch
        seed = self._setting.seed
        seed_all(derive(seed, "noise", self._index, done, self._world.rank))
        rates = self._optimizers.set_rates(done, steps)
        clock = Clock(done, steps, derive(seed, "clock", self._index, done))
        outcome = self._pass(batches, clock, epoch)
        average_gradients(self._optimizers.parameters, outcome.rows, self._world)
        self._optimizers.update(self._world)
        if not self._phase.frozen_norms:
            average_statistics(self._dyn, self._statistics, self._world)
        if self._average is not None:
            self._average.update(self._dyn)
        self._note(outcome, rates, epoch, done + 1, time.perf_counter() - began)

    def _pass(self, batches: Sequence[Batch], clock: Clock, epoch: int) -> Outcome:
        try:
            return self._turns.run(batches, clock)
        except TrainingError as error:
            raise TrainingError(
                error.problem,
                where=f"phase {self._phase.name!r}, epoch {epoch}, step {clock.step} of {clock.steps}",
                fix=f"lower the learning rate or clip gradients; {self._training.last_checkpoint}",
            ) from None

    def _note(self, outcome: Outcome, rates: dict[str, float], epoch: int, done: int, seconds: float) -> None:
        phase = self._phase
        record = StepRecord(self._total, phase.name, epoch, outcome.terms, rates, outcome.share, seconds)
        self._training.note_step(record)
        steps = phase.epochs * self._per_epoch
        numbers = (record.loss, outcome.share, self._validation)
        self._setting.watch(Update(phase.name, epoch, phase.epochs, done, steps, *numbers))

    @property
    def _total(self) -> int:
        return self._training.total

    # -- epochs -------------------------------------------------------------------------------

    def _validate(self) -> tuple[dict[str, float], dict[str, object]]:
        """Validate what would go on from here; keep it if it is the best so far."""
        adopted = self._phase.adopt_average and self._average is not None
        candidate = self._average.model if adopted and self._average is not None else self._dyn
        self._validation, routing = self._training.validate(candidate, learning=self._turns.learning)
        if self._phase.keep == "best":
            self._consider(self._validation["metric"], candidate)
        return self._validation, routing

    def _consider(self, value: float, candidate: nn.Module) -> None:
        if self._best is not None and value <= self._best.value:
            return
        here = replace(self._training.state.position, phase=self._index, total=self._total)
        self._best = Best(value, self._training.name_of(here))
        if self._setting.checkpoints is None:
            self._kept = {name: t.detach().clone() for name, t in candidate.state_dict().items()}

    def _save(self, position: Position) -> None:
        self._training.save(position, self._turns.memories, self._best, self._average, self._optimizers)

    # -- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """Take over the weights that go on, then their statistics; the phase is done."""
        self._settle()
        if self._phase.recalibrate:
            order = derive(self._setting.seed, "recalibrate", self._index)
            recalibrate(self._dyn, self._setting.feed.epoch(order))
        if self._index + 1 == len(self._setting.recipe.phases):
            self._training.finish()
        self._training.save(Position(self._index + 1, 0, 0, self._total))

    def _settle(self) -> None:
        checkpoints = self._setting.checkpoints
        if self._best is not None and checkpoints is not None:
            folder = checkpoints.directory / self._best.checkpoint
            load_model(folder, self._dyn, averaged=self._phase.adopt_average and self._average is not None)
        elif self._best is not None:
            self._dyn.load_state_dict(self._kept)
        elif self._phase.adopt_average and self._average is not None:
            _copy(self._average.model, self._dyn)


@torch.no_grad()
def _copy(source: nn.Module, to: nn.Module) -> None:
    pairs = zip((*to.parameters(), *to.buffers()), (*source.parameters(), *source.buffers()), strict=True)
    for mine, other in pairs:
        mine.copy_(other)
