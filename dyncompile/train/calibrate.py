"""Meeting a budget after training: one scalar shifts all gates towards cheaper or costlier columns.

    logits_c  ->  logits_c - alpha * share_c

    share_c [width]: relative to the source, all that is spent (MACs, or what `cost` counts) at a column that
                     is picked, or what a column that is switched on (gains, bits) adds to the others; see
                     `columns.column_shares`

Logits are read as what a column is worth; `alpha` is then the price of computation, and the same price for
every gate is what a Lagrangian asks for. It is bisected until the mean cost of learned routes meets the
target.

Gains are their logits, capped to [0, 1]: a price that switches the weakest off also scales down what is kept,
and a negative one scales it up. Both change what later decision nets see, so that the cost is no monotone
function of the price, and accuracy suffers from large prices. With gains the search therefore goes outwards
in small steps, ends at the first price within the tolerance, and raises no logit by more than 1/4: what costs
too little is better left alone. Train close to the target (`Budget`). Bits and columns that are kept stay as
they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dyncompile.cost import Cost, ModelMacs
from dyncompile.errors import DyncompileWarning, InputError
from dyncompile.policies import Learned
from dyncompile.processes import mean_over_all
from dyncompile.program import SWITCHES, Choice, Domain
from dyncompile.runtime.model import DynamicModel, Record
from dyncompile.state import GATES
from dyncompile.train.columns import (
    COLUMNS,
    check_target,
    column_shares,
    evaluating,
    learned_choices,
    restoring,
)
from dyncompile.train.phase import Batch

_PASSES = 30
"""Bisection steps at most: enough for a price to nine digits."""
_EXTENT = 24
"""Doublings of the price at most; 2^24 outweighs any logit that float32 trains to."""
_CAREFUL = 64
"""With gains the first price is this part of what is the first otherwise."""
_RAISED = 4
"""With gains, doublings of a price below 0 at most."""


_FAR = 0.1
"""Share of the source's cost that calibration can move without a warning."""


class CalibrationWarning(DyncompileWarning):
    """Decision nets that calibration moved far from what they were trained for."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What calibration did. Shares are of the source's cost, decision nets included, mean over samples.

    Attributes:
        target: share that was asked for.
        before, reached: shares before and after.
        alpha: price that was taken off the logits, per whole of the source's cost.
        within: whether `reached` is within the tolerance of the target. Where it is not, many samples have
            equal logits, and no price separates them; or gains cost too little and are not raised further.
        unit: what was counted.
    """

    target: float
    before: float
    reached: float
    alpha: float
    within: bool
    unit: str = "MACs"

    @property
    def is_far(self) -> bool:
        """Whether the cost moved by more than a tenth of the source's: other routes than trained run then."""
        return abs(self.reached - self.before) > _FAR

    @property
    def warning(self) -> str:
        """What moving so far means, and what to do about it."""
        return (
            f"training ended at {self.before:.1%} of the source's {self.unit}, and calibration moved that to "
            f"{self.reached:.1%} (target {self.target:.1%}) by a price on every column: samples now take "
            "routes that were hardly trained, and accuracy may have fallen. Train longer, give the budget "
            "more weight (Budget(rate=, damping=)) or the whole phase (ramp=0), ask for a target nearer to "
            "where training ended, or let phases calibrate as they go (Phase(calibrate=True))"
        )


def calibrate(
    dyn: DynamicModel,
    batches: Iterable[Batch],
    target: float,
    tolerance: float = 0.02,
    cost: Cost | None = None,
) -> Calibration:
    """Shift the biases of all decision nets until learned routes cost `target` on average.

    Only the biases ``dyn.gates.<choice>.head.bias`` change. Batches are read once per bisection step (once in
    all where there is a single gate); on several processes each gives its own and the mean is over all.

    Args:
        dyn: a model whose choices have decision nets; its mode stays as it is.
        batches: validation samples, on the model's device.
        target: mean share of the source's cost, decision nets included.
        tolerance: how far the reached share may be from the target, relative to the target.
        cost: what is counted; None is MACs.

    Raises:
        SpecError: no choice has a decision net that can be priced, or the target is below the smallest
            route's share.
        InputError: there are no samples.
    """
    choices = learned_choices(dyn, "calibration to a budget", (*COLUMNS, *SWITCHES))
    cost = ModelMacs(dyn) if cost is None else cost
    check_target(dyn, target, cost)
    gates = _Gates(dyn, choices, cost)
    if len(dyn.gated) == 1:
        measure = _replayed(dyn, batches, choices[0], gates, cost)
    else:
        measure = _rerun(dyn, list(batches) if iter(batches) is batches else batches, gates, cost)
    search = _Search(measure, target, tolerance * target / 20, gates.unit)
    if gates.scale:
        near, step = tolerance * target, gates.unit / _CAREFUL
        search = _Search(measure, target, near, step, raised=_RAISED)
    with restoring(gates.biases.values(), always=False):
        alpha = search.run()
        gates.shift(alpha)
    reached = search.shares[alpha]
    return Calibration(
        target, search.shares[0.0], reached, alpha, abs(reached - target) <= tolerance * target, cost.unit
    )


class _Gates:
    """Output biases of decision nets, and what they were."""

    def __init__(self, dyn: DynamicModel, choices: list[Choice], cost: Cost) -> None:
        parameters: Mapping[str, nn.Parameter] = dict(dyn.named_parameters())
        self.biases = {c.name: parameters[f"{GATES}.{c.name}.head.bias"] for c in choices}
        self._before = {name: bias.detach().clone() for name, bias in self.biases.items()}
        self.shares = {c.name: column_shares(dyn, c, cost) for c in choices}
        self.scale = any(choice.domain is Domain.GAINS for choice in choices)

    @property
    def unit(self) -> float:
        """The price at which the logit of the costliest column moves by 1."""
        return 1 / (max(float(shares.max()) for shares in self.shares.values()) or 1.0)

    @torch.no_grad()
    def shift(self, alpha: float) -> None:
        """Biases as they were, less `alpha` times the cost of each column."""
        for name, bias in self.biases.items():
            bias.copy_(self._before[name] - alpha * self.shares[name].to(bias))


@dataclass
class _Search:
    """Bisection of a share that falls with the price; every share that was measured is kept.

    Attributes:
        measure: the share at a price.
        target: the share that is sought.
        near: distance from the target at which the search ends.
        step: the price to try first.
        raised: doublings of a price below 0 at most.
    """

    measure: Callable[[float], float]
    target: float
    near: float
    step: float
    raised: int = _EXTENT
    shares: dict[float, float] = field(default_factory=dict[float, float])

    def run(self) -> float:
        """The price whose share comes nearest to the target, the smallest such price."""
        low, high = self._bracket()
        if self._found() or not self._share(low) > self.target > self._share(high):
            return self._nearest()
        for _ in range(_PASSES):
            if self._found() or high - low < 1e-9 * self.step:
                break
            middle = (low + high) / 2
            low, high = (middle, high) if self._share(middle) > self.target else (low, middle)
        return self._nearest()

    def _bracket(self) -> tuple[float, float]:
        """Two prices, the first too low and the second too high."""
        sign = 1.0 if self._share(0.0) > self.target else -1.0
        inner, outer = 0.0, sign * self.step
        for _ in range(_EXTENT if sign > 0 else self.raised):
            if self._found() or (self._share(outer) - self.target) * sign <= 0:
                break
            inner, outer = outer, 2 * outer
        return min(inner, outer), max(inner, outer)

    def _found(self) -> bool:
        return self._distance(self._nearest()) <= self.near

    def _share(self, alpha: float) -> float:
        if alpha not in self.shares:
            self.shares[alpha] = self.measure(alpha)
        return self.shares[alpha]

    def _nearest(self) -> float:
        return min(self.shares, key=lambda alpha: (self._distance(alpha), abs(alpha)))

    def _distance(self, alpha: float) -> float:
        return abs(self.shares[alpha] - self.target)


def _rerun(
    dyn: DynamicModel, batches: Iterable[Batch], gates: _Gates, cost: Cost
) -> Callable[[float], float]:
    """The mean share at a price, by running the model: later gates see what earlier ones decided."""

    def measure(alpha: float) -> float:
        gates.shift(alpha)
        with evaluating(dyn):
            found = [cost.spent(_on_cpu(record.route)) for record in _records(dyn, batches)]
        return _mean_share(cost, found)

    return measure


def _replayed(
    dyn: DynamicModel, batches: Iterable[Batch], choice: Choice, gates: _Gates, cost: Cost
) -> Callable[[float], float]:
    """The same for a single gate, whose logits before the shift do not depend on the price: one run."""
    with evaluating(dyn):
        found = [(_on_cpu(one.route), _on_cpu(one.logits)) for one in _records(dyn, batches)]
    route = {name: torch.cat([one[name] for one, _ in found]) for name in found[0][0]} if found else {}
    logits = (
        torch.cat([logits[choice.name] for _, logits in found]) if found else torch.zeros(0, choice.width)
    )

    def measure(alpha: float) -> float:
        shifted = logits - (alpha * gates.shares[choice.name]).to(logits)
        rows = Learned().decide(choice, len(shifted), shifted)
        return _mean_share(cost, [cost.spent({**route, choice.name: rows})] if found else [])

    return measure


def _records(dyn: DynamicModel, batches: Iterable[Batch]) -> Iterator[Record]:
    """What the decision nets decide of each batch."""
    for batch in batches:
        yield dyn.record(*batch.args, policy=Learned(), execution="sparse", **batch.kwargs)


def _on_cpu(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in rows.items()}


def _mean_share(cost: Cost, spent: list[Tensor]) -> float:
    """Mean share of the source's cost of `spent` [B], one tensor per batch, over all processes' samples.

    Raises InputError where there are none.
    """
    shares = torch.cat([torch.zeros(0).double(), *spent]) / cost.source
    mean, samples = mean_over_all(shares)
    if samples == 0:
        raise InputError("there are no samples to calibrate on", fix="give at least one validation batch")
    return mean
