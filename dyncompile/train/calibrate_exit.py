"""Thresholds and temperatures of exits from validation data.

Temperatures minimize the cross entropy of each early prediction (Guo et al., ICML 2017), so that confidences
of several exits mean the same. One threshold then serves all exits: it is searched among those that tell the
validation samples apart, by what every sample would cost and say at each exit.

    at threshold t a sample leaves at its first exit of confidence above t, else it gets the final prediction
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
from dyncompile.runtime.model import DynamicModel, as_dynamic
from dyncompile.state import EXITS, STATE_PREFIX
from dyncompile.train.batches import as_batch
from dyncompile.train.columns import check_share, evaluating, restoring
from dyncompile.train.losses import IGNORED, class_labels
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
        data: validation samples on the model's device, batch by batch, in the forms that `fit` takes. Labels
            are class indices or probabilities; samples labeled -100 are left out.
        target: mean share of the source's cost, decisions included, that is not to be passed. The most
            careful threshold that keeps to it is taken.
        accuracy_drop: largest loss of accuracy against nobody leaving, as a share of the samples. The
            cheapest threshold that keeps to it is taken.
        temperatures: fit them; else they stay as they are.
        cost: what is counted, e.g. ``dc.Latency(dyn)``; None is MACs.

    Raises:
        SpecError: the model has no exit, not exactly one of `target` and `accuracy_drop` is given, or no
            threshold is as cheap as the target.
        InputError: there are no labeled samples, or labels are out of range.
    """
    dyn = as_dynamic(dyn)
    if not dyn.exits:
        raise SpecError("the model has no exit to calibrate", fix='dynamize with "exits" or "basisnet"')
    aim = _Aim(target, accuracy_drop)
    subject = _subject(dyn, data, cost)
    with restoring(subject.tensors, always=False), evaluating(dyn):
        found = _outcomes(subject, fits=temperatures)
        threshold = _best(found, aim)
        for _, buffer in subject.buffers.values():
            buffer.fill_(threshold)
        return _report(subject, found, threshold)


@dataclass(frozen=True, slots=True)
class _Aim:
    """What a threshold has to keep to: one of a mean share of the cost and a loss of accuracy."""

    target: float | None
    accuracy_drop: float | None

    def __post_init__(self) -> None:
        if (self.target is None) == (self.accuracy_drop is None):
            raise SpecError("give either a target of MACs or an accuracy_drop")
        if self.target is not None:
            check_share(self.target)
        if self.accuracy_drop is not None and not 0 <= self.accuracy_drop <= 1:
            raise SpecError(f"accuracy_drop is a share of the samples in [0, 1], got {self.accuracy_drop}")


@dataclass(frozen=True, slots=True)
class _Subject:
    """A model with exits, samples, and what is counted; (temperature, threshold) of every exit, in order."""

    dyn: DynamicModel
    batches: list[Batch]
    buffers: Mapping[str, tuple[Tensor, Tensor]]
    cost: Cost

    @property
    def tensors(self) -> list[Tensor]:
        return [buffer for pair in self.buffers.values() for buffer in pair]


def _subject(dyn: DynamicModel, data: Iterable[Any], cost: Cost | None) -> _Subject:
    batches = [one if isinstance(one, Batch) else as_batch(one, dyn.program) for one in data]
    if not batches:
        raise InputError("there are no samples to calibrate on", fix="give at least one batch")
    buffers = {name: _buffers(dyn, name) for name in dyn.exits}
    return _Subject(dyn, batches, buffers, ModelMacs(dyn) if cost is None else cost)


def _buffers(dyn: DynamicModel, name: str) -> tuple[Tensor, Tensor]:
    """(temperature, threshold) of an exit."""
    prefix = f"{STATE_PREFIX}.{EXITS}.{name}"
    return dyn.get_buffer(f"{prefix}.temperature"), dyn.get_buffer(f"{prefix}.threshold")


def _report(subject: _Subject, found: Outcomes, threshold: float) -> ExitCalibration:
    where = found.leaving(threshold)
    accuracy, share = found.at(threshold)
    final_accuracy, final_share = found.at(OFF)
    return ExitCalibration(
        threshold=threshold,
        temperatures={name: float(temperature) for name, (temperature, _) in subject.buffers.items()},
        accuracy=accuracy,
        share=share,
        final_accuracy=final_accuracy,
        final_share=final_share,
        left={name: float((where == i).double().mean()) for i, name in enumerate(subject.dyn.exits)},
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
    subject = _subject(dyn, data, cost)
    with restoring(subject.tensors), evaluating(dyn):
        return _outcomes(subject, fits=False)


def _outcomes(subject: _Subject, *, fits: bool) -> Outcomes:
    """Thresholds are 0 afterwards, and temperatures fitted if asked for."""
    said, spent = zip(*(_all_at(subject, way) for way in (*subject.dyn.exits, None)), strict=True)
    labels = _labels(subject, said[-1])
    known = labels != IGNORED
    for (temperature, threshold), logits in zip(subject.buffers.values(), said, strict=False):
        if fits:
            temperature.fill_(fitted_temperature(logits[known], labels[known]))
        threshold.zero_()  # scores are then the confidences themselves
    right = torch.stack([(logits.argmax(1) == labels).double() for logits in said], 1)
    costs = torch.stack(list(spent), 1) / subject.cost.source
    return Outcomes(_confidences(subject)[known], right[known], costs[known])


def _labels(subject: _Subject, logits: Tensor) -> Tensor:
    """Class indices [N] of all samples. Raises InputError where there are none."""
    targets = torch.cat([target_of(batch).cpu() for batch in subject.batches])
    if not targets.is_floating_point():
        targets = targets.reshape(-1)
    labels = class_labels(logits, targets)[1]
    if bool((labels == IGNORED).all()):
        raise InputError("there are no labeled samples to calibrate on", fix="give some")
    return labels


def _all_at(subject: _Subject, way: str | None) -> tuple[Tensor, Tensor]:
    """(logits [N, K], cost [N]) where all samples leave at one exit, or none does; on the CPU."""
    logits: list[Tensor] = []
    spent: list[Tensor] = []
    for batch in subject.batches:
        record = subject.dyn.record(*batch.args, policy=Leaving(way), execution="sparse", **batch.kwargs)
        logits.append(logits_of(record.output).float().cpu())
        spent.append(subject.cost.spent(record.route).cpu())
    return torch.cat(logits), torch.cat(spent)


def _confidences(subject: _Subject) -> Tensor:
    """Confidence of every sample at every exit, thresholds being 0: [N, exits]."""
    found: list[Tensor] = []
    for batch in subject.batches:
        record = subject.dyn.record(*batch.args, policy=Leaving(None), execution="sparse", **batch.kwargs)
        found.append(torch.cat([record.logits[name].double().cpu() for name in subject.buffers], 1))
    return torch.cat(found)


def _best(found: Outcomes, aim: _Aim) -> float:
    tried = [(threshold, *found.at(threshold)) for threshold in _candidates(found.sure)]
    if aim.target is not None:
        fitting = [one for one in tried if one[2] <= aim.target]
        if not fitting:
            least = min(share for _, _, share in tried)
            raise SpecError(
                f"no threshold is as cheap as the target of {aim.target:.1%} of the source's MACs: "
                f"leaving as early as possible takes {least:.1%}",
                fix="ask for more, or let exits stand earlier",
            )
        return max(fitting)[0]
    least = float(found.right[:, -1].mean()) - (aim.accuracy_drop or 0.0)
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
