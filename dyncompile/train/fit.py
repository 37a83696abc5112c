"""`fit`: carry out a recipe on a dynamic model."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dyncompile.cost import Cost
from dyncompile.errors import SpecError
from dyncompile.runtime.model import DynamicModel, as_dynamic
from dyncompile.train.accelerated import Precision, World, world
from dyncompile.train.checkpoints import Checkpoints
from dyncompile.train.data import Feed, Layout, open_stream
from dyncompile.train.evaluation import Metric
from dyncompile.train.history import History
from dyncompile.train.loop import run_phase
from dyncompile.train.losses import accuracy, default_loss
from dyncompile.train.phase import Loss, Recipe
from dyncompile.train.plan import check_recipe, describe_training
from dyncompile.train.progress import Watch, watching
from dyncompile.train.randomness import preserved
from dyncompile.train.training import Setting, Training


def fit(
    dyn: DynamicModel,
    recipe: Recipe,
    train_data: Any,
    val_data: Any = None,
    *,
    loss: Loss | None = None,
    metric: Metric | None = None,
    cost: Cost | None = None,
    batch_size: int = 64,
    accumulate: int = 1,
    workers: int = 0,
    precision: Precision | None = None,
    seed: int = 0,
    directory: str | os.PathLike[str] | None = None,
    resume: bool = True,
    checkpoint_every: int | None = None,
    keep_checkpoints: int = 2,
    trackers: Sequence[Any] = (),
    progress: bool | Watch = True,
) -> History:
    """Train a dynamic model by a recipe, on one process or, under `torchrun`, on many.

    Over several processes every one takes `batch_size` samples per pass, gradients are averaged once per step
    (`dyncompile.train.distributed` says why there is no DistributedDataParallel), and widths are drawn in
    step.

    Args:
        dyn: is trained in place and moved to the device that Accelerate chooses. Afterwards it is in the mode
            (training or evaluation) that it was in. Parameters that require no gradients stay as they are.
        recipe: phases in order, e.g. ``dc.recipes.dsnet()``.
        train_data: a dataset of (input, target) pairs or dicts (``labels`` is the target), a `DataLoader`, or
            a list of batches. A dataset is shuffled here, and every step is of the same size, give or take
            one sample. A loader keeps its own sizes; `batch_size` and `workers` are then without effect.
        val_data: likewise, in the given order. The learned policy is validated on it after every epoch, and
            decision nets are shifted to `recipe.target` on it at the end; without it neither happens.
        loss: ``loss(output, target)`` -> scalar; by default cross-entropy on the output or its ``logits``, or
            the model's own ``loss`` where the data has no target.
        metric: ``metric(output, target)`` -> number, higher is better; by default top-1 accuracy.
        cost: what targets and budgets count: shares of the source's. None is MACs; ``dc.Latency(dyn)`` makes
            ``target=0.6`` 60 % of the source's time on the machine where it was measured. Over several
            processes it should be measured before, so that all read the same times.
        batch_size: samples per forward pass and process.
        accumulate: forward passes per step whose gradients are averaged.
        workers: processes that read a dataset ahead.
        precision: "no", "bf16" or "fp16" (with a loss scale); None takes what `accelerate launch` says, else
            no.
        seed: everything random follows from it.
        directory: where checkpoints and ``history.json`` go, on a file system that every process sees; None
            writes nothing.
        resume: go on from the newest checkpoint in `directory`, on a CPU bit for bit as if nothing had
            happened. If training was finished, its result is loaded.
        checkpoint_every: steps between checkpoints; there is one after every epoch in any case.
        keep_checkpoints: how many of the newest stay, besides the best one of a phase that keeps its best.
        trackers: names that Accelerate knows ("tensorboard", "wandb", ...) or its tracker objects.
        progress: a bar on stderr, nothing, or a function of `dyncompile.train.Update`.

    Returns:
        Terms, rates and costs of every step, validation of every epoch.

    Raises:
        SpecError: it is no dynamic model, the recipe does not fit it, or its target is below the smallest
            route.
        InputError: data that is empty, cannot be read as batches, or has labels out of range.
        TrainingError: a loss is not finite; nothing is written after it.
        CheckpointError: the newest checkpoint is damaged, or belongs to another model, recipe or data.
    """
    dyn = as_dynamic(dyn)
    check_recipe(dyn, recipe, validated=val_data is not None, cost=cost)
    if checkpoint_every is not None and checkpoint_every < 1:
        raise SpecError(f"checkpoint_every is a number of steps, at least 1, got {checkpoint_every}")
    folder = None if directory is None else Path(directory)
    with world(precision, trackers, folder) as here, preserved(here.device), _mode_kept(dyn):
        dyn.to(here.device)
        layout = Layout(batch_size, accumulate, here.rank, here.count, training=True, workers=workers)
        train, validation = _feed(dyn, train_data, layout, here), None
        if val_data is not None:
            validation = _feed(dyn, val_data, replace(layout, accumulate=1, training=False), here)
        counted = {} if cost is None else {"cost": repr(cost)}
        plan = describe_training(
            dyn, recipe, seed=seed, steps=train.stream.steps, processes=here.count, **counted
        )
        with watching(progress, main=here.main) as watch:
            setting = Setting(
                dyn=dyn,
                recipe=recipe,
                world=here,
                loss=loss or default_loss,
                metric=metric or accuracy,
                cost=cost,
                plan=plan,
                seed=seed,
                feed=train,
                validation=validation,
                checkpoints=None if folder is None else Checkpoints(folder, keep_checkpoints),
                every=checkpoint_every,
                watch=watch,
            )
            return _train(Training(setting), resume=resume)


def _train(training: Training, *, resume: bool) -> History:
    folder = training.resume(allowed=resume)
    training.start()
    try:
        for index in range(training.state.position.phase, len(training.setting.recipe.phases)):
            run_phase(training, index, folder)
            folder = None
    finally:
        training.setting.world.finish_trackers()
    return training.history


def _feed(dyn: DynamicModel, data: Any, layout: Layout, here: World) -> Feed:
    return Feed(open_stream(data, layout, here), dyn.program, here.device)


@contextmanager
def _mode_kept(dyn: DynamicModel) -> Generator[None]:
    training = dyn.training
    try:
        yield
    finally:
        dyn.train(training)
