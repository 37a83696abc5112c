"""Thresholds and temperatures of exits from validation data.

Temperatures minimize the cross entropy of each early prediction (Guo et al., ICML 2017), so that confidences
of several exits mean the same. One threshold then serves all exits: it is searched among those that tell the
validation samples apart, by what every sample would cost and say at each exit.

    at threshold t a sample leaves at its first exit of confidence above t, else it gets the final prediction
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from dyncompile.cost import Cost, ModelMacs
from dyncompile.errors import InputError, SpecError
from dyncompile.exits import OFF
from dyncompile.policies import Learned
from dyncompile.program import Choice, Domain
from dyncompile.runtime.model import DynamicModel
from dyncompile.state import EXITS, STATE_PREFIX
from dyncompile.train.batches import as_batch
from dyncompile.train.columns import check_share, evaluating
from dyncompile.train.objectives import logits_of, target_of
from dyncompile.train.phase import Batch

_CANDIDATES = 1000
"""Thresholds that are tried at most: evenly spread over the samples' confidences."""
_STEPS = 60
"""Steps of the search for a temperature: golden sections, to twelve digits."""


@dataclass(frozen=True, slots=True)
class ExitCalibration:
    """What calibration found on the validation data. Shares are of the source's cost, decisions included.

    Attributes:
        threshold: of all exits; `OFF` where leaving never pays.
        temperatures: by exit.
        accuracy, share: with the exits.
        final_accuracy, final_share: without anybody leaving.
        left: part of the samples that leave at each exit.
    """

    threshold: float
    temperatures: Mapping[str, float]
    accuracy: float
    share: float
    final_accuracy: float
    final_share: float
    left: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Leaving:
    """All rows leave at one exit, or at none; other choices are what their nets say."""

    reads_gates: ClassVar[bool] = True

    exit: str | None

    def decide(self, choice: Choice, rows: int, logits: Tensor | None) -> Tensor:
        """Decisions [rows, width]."""
        if choice.domain is not Domain.EXIT:
            return Learned().decide(choice, rows, logits)
        row = choice.smallest if choice.name == self.exit else choice.full
        return torch.tensor([row]).expand(rows, -1)


def calibrate_exit(
    dyn: DynamicModel,
    data: Iterable[Any],
    *,
    target: float | None = None,
    accuracy_drop: float | None = None,
    temperatures: bool = True,
    cost: Cost | None = None,
) -> ExitCalibration:
    """Set the thresholds of all exits, by a budget or by the accuracy that may be lost.

    Args:
        dyn: a model with exits; its mode stays as it is.
        data: validation samples on the model's device, batch by batch, in the forms that `fit` takes.
        target: mean share of the source's cost, decisions included, that is not to be passed. The most
            careful threshold that keeps to it is taken.
        accuracy_drop: largest loss of accuracy against nobody leaving, as a share of the samples. The
            cheapest threshold that keeps to it is taken.
        temperatures: fit them; else they stay as they are.
        cost: what is counted, e.g. ``dc.Latency(dyn)``; None is MACs.

    Raises:
        SpecError: the model has no exit, not exactly one of `target` and `accuracy_drop` is given, or no
            threshold is as cheap as the target.
        InputError: there are no samples.
    """
    _check(dyn, target, accuracy_drop)
    batches = _batches(dyn, data)
    buffers = {name: _buffers(dyn, name) for name in dyn.exits}
    with _restoring(buffers, always=False), evaluating(dyn):
        return _search(
            dyn,
            batches,
            buffers,
            temperatures,
            target,
            accuracy_drop,
            ModelMacs(dyn) if cost is None else cost,
        )


def _batches(dyn: DynamicModel, data: Iterable[Any]) -> list[Batch]:
    found = [one if isinstance(one, Batch) else as_batch(one, dyn.program) for one in data]
    if not found:
        raise InputError("there are no samples to calibrate on", fix="give at least one batch")
    return found


@contextmanager
def _restoring(buffers: Mapping[str, tuple[Tensor, Tensor]], *, always: bool = True) -> Generator[None]:
    """Temperatures and thresholds as before afterwards, always or if something fails."""
    before = {name: tuple(buffer.clone() for buffer in pair) for name, pair in buffers.items()}
    done = False
    try:
        yield
        done = True
    finally:
        if always or not done:
            for name, old in before.items():
                for buffer, value in zip(buffers[name], old, strict=True):
                    buffer.copy_(value)


def _check(dyn: DynamicModel, target: float | None, accuracy_drop: float | None) -> None:
    if not dyn.exits:
        raise SpecError("the model has no exit to calibrate", fix='dynamize with "exits" or "basisnet"')
    if (target is None) == (accuracy_drop is None):
        raise SpecError("give either a target of MACs or an accuracy_drop")
    if target is not None:
        check_share(target)
    if accuracy_drop is not None and not 0 <= accuracy_drop <= 1:
        raise SpecError(f"accuracy_drop is a share of the samples in [0, 1], got {accuracy_drop}")


def _buffers(dyn: DynamicModel, name: str) -> tuple[Tensor, Tensor]:
    """(temperature, threshold) of an exit."""
    prefix = f"{STATE_PREFIX}.{EXITS}.{name}"
    return dyn.get_buffer(f"{prefix}.temperature"), dyn.get_buffer(f"{prefix}.threshold")


def _search(
    dyn: DynamicModel,
    batches: list[Batch],
    buffers: Mapping[str, tuple[Tensor, Tensor]],
    fits: bool,
    target: float | None,
    accuracy_drop: float | None,
    cost: Cost,
) -> ExitCalibration:
    found = _outcomes(dyn, batches, buffers, fits, cost)
    threshold = _best(found, target, accuracy_drop)
    for _, buffer in buffers.values():
        buffer.fill_(threshold)
    where = found.leaving(threshold)
    accuracy, share = found.at(threshold)
    final_accuracy, final_share = found.at(OFF)
    return ExitCalibration(
        threshold=threshold,
        temperatures={name: float(temperature) for name, (temperature, _) in buffers.items()},
        accuracy=accuracy,
        share=share,
        final_accuracy=final_accuracy,
        final_share=final_share,
        left={name: float((where == i).double().mean()) for i, name in enumerate(dyn.exits)},
    )


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What every sample is worth and costs at each exit, exits in order; nobody leaving comes last.

    Attributes:
        sure: confidences [N, exits].
        right: 1 where the prediction is right, else 0: [N, exits + 1].
        costs: shares of what the source costs, decisions included: [N, exits + 1].
    """

    sure: Tensor
    right: Tensor
    costs: Tensor

    def leaving(self, threshold: float) -> Tensor:
        """The exit at which each sample leaves, by position; one past the last for none: int64 [N]."""
        stops = torch.cat([self.sure > threshold, torch.ones(len(self.sure), 1, dtype=torch.bool)], 1)
        return stops.int().argmax(1)

    def at(self, threshold: float) -> tuple[float, float]:
        """(accuracy, mean share of the source's cost) at a threshold of all exits."""
        rows, where = torch.arange(len(self.sure)), self.leaving(threshold)
        return float(self.right[rows, where].mean()), float(self.costs[rows, where].mean())


def outcomes(dyn: DynamicModel, data: Iterable[Any], cost: Cost | None = None) -> Outcomes:
    """Run labeled samples through every exit and through the whole network, at the present temperatures.

    Args:
        dyn: a model with exits; it stays as it is.
        data, cost: as for `calibrate_exit`.

    Raises:
        InputError: there are no samples.
    """
    buffers = {name: _buffers(dyn, name) for name in dyn.exits}
    with _restoring(buffers), evaluating(dyn):
        return _outcomes(dyn, _batches(dyn, data), buffers, False, ModelMacs(dyn) if cost is None else cost)


def _outcomes(
    dyn: DynamicModel,
    batches: list[Batch],
    buffers: Mapping[str, tuple[Tensor, Tensor]],
    fits: bool,
    cost: Cost,
) -> Outcomes:
    """Thresholds are 0 afterwards, and temperatures fitted if asked for."""
    labels = torch.cat([target_of(batch).reshape(-1).cpu() for batch in batches])
    ways = (*dyn.exits, None)
    said, spent = zip(*(_all_at(dyn, batches, way, cost) for way in ways), strict=True)
    for name, logits in zip(dyn.exits, said, strict=False):
        temperature, threshold = buffers[name]
        if fits:
            temperature.fill_(fitted_temperature(logits, labels))
        threshold.zero_()  # scores are then the confidences themselves
    right = torch.stack([(logits.argmax(1) == labels).double() for logits in said], 1)
    return Outcomes(_confidences(dyn, batches), right, torch.stack(list(spent), 1) / cost.source)


def _all_at(dyn: DynamicModel, batches: list[Batch], way: str | None, cost: Cost) -> tuple[Tensor, Tensor]:
    """(logits [N, K], cost [N]) where all samples leave at one exit, or none does; on the CPU."""
    logits: list[Tensor] = []
    spent: list[Tensor] = []
    for batch in batches:
        record = dyn.record(*batch.args, policy=Leaving(way), execution="sparse", **batch.kwargs)
        logits.append(logits_of(record.output).float().cpu())
        spent.append(cost.spent(record.route).cpu())
    return torch.cat(logits), torch.cat(spent)


def _confidences(dyn: DynamicModel, batches: list[Batch]) -> Tensor:
    """Confidence of every sample at every exit, thresholds being 0: [N, exits]."""
    found: list[Tensor] = []
    for batch in batches:
        record = dyn.record(*batch.args, policy=Leaving(None), execution="sparse", **batch.kwargs)
        found.append(torch.cat([record.logits[name].double().cpu() for name in dyn.exits], 1))
    return torch.cat(found)


def _best(found: Outcomes, target: float | None, accuracy_drop: float | None) -> float:
    tried = [(threshold, *found.at(threshold)) for threshold in _candidates(found.sure)]
    if target is not None:
        fitting = [one for one in tried if one[2] <= target]
        if not fitting:
            least = min(share for _, _, share in tried)
            raise SpecError(
                f"no threshold is as cheap as the target of {target:.1%} of the source's MACs: "
                f"leaving as early as possible takes {least:.1%}",
                fix="ask for more, or let exits stand earlier",
            )
        return max(fitting)[0]
    least = float(found.right[:, -1].mean()) - (accuracy_drop or 0.0)
    return min((one for one in tried if one[1] >= least - 1e-12), key=lambda one: (one[2], -one[0]))[0]


def _candidates(sure: Tensor) -> list[float]:
    """Thresholds between neighboring confidences, below all of them, and `OFF`."""
    known: Tensor = cast(Any, torch).unique(sure)
    if len(known) > _CANDIDATES:
        known = known[torch.linspace(0, len(known) - 1, _CANDIDATES).round().long()]
    between = (known[1:] + known[:-1]) / 2
    return [-1.0, *map(float, between), OFF]


def fitted_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature in [1/20, 20] at which logits [N, K] have the least cross entropy.

    It is convex in 1 / T, so golden sections of 1 / T find it.
    """
    low, high, ratio = 0.05, 20.0, (5**0.5 - 1) / 2

    def loss(inverse: float) -> float:
        return float(F.cross_entropy(logits.double() * inverse, labels))

    return 1 / _minimum(loss, low, high, ratio)


def _minimum(function: Callable[[float], float], low: float, high: float, ratio: float) -> float:
    for _ in range(_STEPS):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if function(left) <= function(right) else (left, high)
    return (low + high) / 2
