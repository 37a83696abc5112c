"""Terms that hold the mean cost of learned routes to a budget. Cost is path and decision nets.

    share = (mean MACs of the route + MACs of the decision nets) / MACs of the source
            (seconds in place of MACs where `fit` is given a `Latency`)
    cost  = (share - smallest share) / (full share - smallest share)      in [0, 1] for every model

`Budget` is a method of multipliers for one constraint: the multiplier rises while routes cost too much and
falls while they cost too little, and a penalty on the present error damps the swing (Platt and Barr, NIPS
1987). Errors count in `cost`, time in phases and pressure in units of the task loss, so that one setting
serves every model, target and length. The other two are the terms of the papers, which need a weight per
setting.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dyncompile.errors import SpecError
from dyncompile.processes import mean_over_all
from dyncompile.train.columns import check_share, check_target, reachable_shares
from dyncompile.train.phase import Moment, Recipe

_NEAR = 0.05
"""Error (in `cost`) from which on the multiplier moves at full rate."""

_AHEAD = 0.05
"""Part of a phase that the budget looks ahead."""


def route_share(moment: Moment) -> Tensor:
    """Share of the source's cost of each sample, decision nets included: float64 [B], differentiable."""
    return moment.cost.spent(moment.record.route) / moment.cost.source


@dataclass(frozen=True, slots=True)
class Budget:
    """Steers the mean share of the source's MACs to `target`, whatever it takes.

    Attributes:
        target: share of the source's MACs, decision nets included.
        rate: how far the multiplier moves over a phase at most.
        damping: penalty per unit of error.
        horizon: part of the phase over which the mean share is smoothed.
        one_sided: only push down; routes may cost less than the target.
        ramp: part of the phase over which the share asked for falls linearly to `target`; 0: at once.
        start: share at which the ramp starts; None is the full route's.

    `rate` and `damping` are in units of the task loss (at least 1). The multiplier and the mean are kept in
    `moment.memory`; over several processes the mean is that of all.

    Raises when called:
        SpecError: the target is below the smallest route.
    """

    target: float
    rate: float = 16.0
    damping: float = 40.0
    horizon: float = 0.005
    one_sided: bool = False
    ramp: float = 0.0
    start: float | None = None

    def __post_init__(self) -> None:
        check_share(self.target)
        if not 0 <= self.ramp <= 1 or (self.start is not None and self.start < self.target):
            raise SpecError(
                f"the ramp of a budget is a part of the phase in [0, 1] and leads down, got {self}",
                fix="let it start at a share of the source's MACs that is above the target",
            )
        if min(self.rate, self.damping, self.horizon) < 0 or self.rate + self.damping == 0:
            raise SpecError(
                f"rate, damping and horizon of a budget are at least 0 and do something, got {self}"
            )

    def __call__(self, moment: Moment) -> Tensor:
        """(multiplier + damping x error) x cost: a scalar; its gradient is that pressure times the cost's."""
        if not moment.memory:
            check_target(moment.dyn, self.target, moment.cost)
        least, span = _range(moment)
        shares = route_share(moment)
        error = (self._expected(moment, shares) - self._asked(moment, least + span)) / span
        unit = max(1.0, self._unit(moment))
        pressure = unit * (self._multiplier(moment, error) + self.damping * error)
        pressure = max(0.0, pressure) if self.one_sided else pressure
        return (pressure * (shares.mean() - least) / span).float()

    def _asked(self, moment: Moment, full: float) -> float:
        """The share to hold now: on the ramp from `start`, or the `full` route's, to the target."""
        if moment.clock.progress >= self.ramp:
            return self.target
        start = full if self.start is None else self.start
        return start + (self.target - start) * moment.clock.progress / self.ramp

    def _multiplier(self, moment: Moment, error: float) -> float:
        step = self.rate / max(moment.clock.steps, 1) * max(-1.0, min(1.0, error / _NEAR))
        value = moment.memory.get("multiplier", 0.0) + step
        moment.memory["multiplier"] = max(0.0, value) if self.one_sided else value
        return moment.memory["multiplier"]

    def _expected(self, moment: Moment, shares: Tensor) -> float:
        """Where the smoothed share will be shortly: it goes on as it has moved away from its slow mean.

        So the multiplier does not wind up while the share is on its way.
        """
        present, _ = mean_over_all(shares)
        fast = self._follow(moment, "share", present, self.horizon)
        return 2 * fast - self._follow(moment, "slow share", present, _AHEAD)

    def _unit(self, moment: Moment) -> float:
        """Smoothed size of the task loss."""
        with torch.no_grad():
            loss = moment.loss(moment.record.output, moment.batch.target)
        return self._follow(moment, "loss", abs(mean_over_all(loss.reshape(1))[0]), self.horizon)

    def _follow(self, moment: Moment, name: str, value: float, horizon: float) -> float:
        weight = 1 / max(1.0, horizon * moment.clock.steps)
        before = moment.memory.get(name, value)
        moment.memory[name] = before + weight * (value - before)
        return moment.memory[name]


@dataclass(frozen=True, slots=True)
class RatioBudget:
    """``weight (F / T)^2``, F the mean MACs of the routes: DS-Net's cost term. It only pushes down.

    Attributes:
        weight: 0.5 in DS-Net's code.
        reference: T in MACs (in the unit of the cost); None is the source's own count. DS-Net's code has 1e9
            for every network, against which small networks hardly feel the term.
    """

    weight: float = 0.5
    reference: float | None = None

    def __post_init__(self) -> None:
        if self.reference is not None and self.reference <= 0:
            raise SpecError(f"the reference of a budget is a positive number of MACs, got {self.reference}")

    def __call__(self, moment: Moment) -> Tensor:
        """A scalar."""
        scale = 1.0 if self.reference is None else moment.cost.source / self.reference
        return (self.weight * (route_share(moment).mean() * scale) ** 2).float()


@dataclass(frozen=True, slots=True)
class HingeBudget:
    """``weight max(0, (E[F] - alpha) / (Cmax - Cmin))``: the cost term of DRNet (NeurIPS 2021).

    Attributes:
        weight: 0.2 in the paper, 0.1 to 1 tried.
        target: alpha as a share of the source's MACs. Whether the paper's alpha counts the decision net is
            not said; here it does, as everywhere.
    """

    target: float
    weight: float = 0.2

    def __post_init__(self) -> None:
        check_share(self.target)

    def __call__(self, moment: Moment) -> Tensor:
        """A scalar; 0 below the target."""
        _, span = _range(moment)
        excess = (route_share(moment).mean() - self.target) / span
        return (self.weight * excess.clamp(min=0)).float()


def holds_budget(recipe: Recipe) -> bool:
    """Whether some phase trains decision nets towards a cost, straight or through a term around a budget."""
    terms = [term for phase in recipe.phases for turn in phase.turns for term in turn.terms.values()]
    return any(isinstance(getattr(term, "term", term), Budget | RatioBudget | HingeBudget) for term in terms)


def _range(moment: Moment) -> tuple[float, float]:
    """(share of the smallest route, what the full one takes on top). SpecError where that is nothing."""
    least, most = reachable_shares(moment.dyn, moment.cost)
    if most <= least:
        each = f"every route takes {least:.1%}"
        if most < least:
            each = f"the full route takes {most:.1%}, and the smallest one {least:.1%},"
        raise SpecError(
            f"a budget has nothing to steer: {each} of the source's {moment.cost.unit}",
            fix="offer columns of different cost, or leave the budget out",
        )
    return least, most - least
