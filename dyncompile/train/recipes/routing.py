"""Two recipes for models of the pass `routing`, by what teaches the routers.

"relaxed": alternatives, routers, all with soft weights, then with hard.

    branches  alternatives learn what they stand in for (`Matching`); the network is frozen
    routers   decision nets alone, soft Gumbel weights at `tau[0]`; norms keep their statistics
    joint     everything trains, soft Gumbel weights, the temperature falls from `tau[0]` to `tau[1]`; the
              budget falls to the target, and the load is balanced more and more
    hard      selected weights as at inference (straight-through), without noise
    end       batch-norm statistics are estimated anew; the routers are calibrated to the target where there
              is validation data

"worth": routers learn what alternatives are worth to a sample (`RouteWorth`), not to keep a budget. A budget
moves all samples at once; where data is small, routers that follow it end with one route for all of them.

    branches  as above
    joint     the network and its alternatives, routers left out: the full route and random ones, which also
              learn from the full one
    routers   decision nets alone
    hard      the network on selected routes; before every epoch the routers are calibrated to the target
    end       as above

All phases but the last serve any target.

Verified against the abstract of "Dynamic Routing Networks" (2021): weights recalibrated by Gumbel-Softmax
before the selection. Losses, weights, temperatures and stages are not known to us: all numbers are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dyncompile.errors import SpecError
from dyncompile.policies import Full, Learned, Policy
from dyncompile.train.budget import Budget
from dyncompile.train.columns import check_share
from dyncompile.train.gains import RouteConsistency
from dyncompile.train.mixtures import AsSelected, LoadBalance, Matching, RouteDiversity
from dyncompile.train.objectives import Distillation, TaskLoss
from dyncompile.train.phase import Clock, Objective, Optimization, Phase, Recipe, Schedule, Turn, View
from dyncompile.train.recipes.parts import Always, Draw
from dyncompile.train.worth import RouteWorth

Teaching = Literal["relaxed", "worth"]

_DRAWN = 0.05
"""Temperature at which a row drawn with noise is one column, whatever the selection."""


@dataclass(frozen=True, slots=True)
class Annealed:
    """Soft noisy decisions whose temperature falls geometrically over the phase."""

    first: float
    last: float

    def __call__(self, clock: Clock) -> Policy:
        """The decisions of this step."""
        return Learned(self.first * (self.last / self.first) ** clock.progress, hard=False, noise=True)


def routing(
    *,
    target: float | None = 0.5,
    teaching: Teaching = "relaxed",
    branch_epochs: int = 1,
    router_epochs: int = 1,
    joint_epochs: int = 4,
    hard_epochs: int = 1,
    tau: tuple[float, float] = (5.0, 0.5),
    balance: float = 0.01,
    diversity: float = 0.0,
    distillation: float = 0.0,
    consistency: float = 0.0,
    view: View | None = None,
    ramp: float = 0.5,
    branches: Optimization | None = None,
    base: Optimization | None = None,
    gates: Optimization | None = None,
    schedule: Schedule | None = None,
    clip: float | None = 5.0,
) -> Recipe:
    """Train a trained network with alternatives to a mean share of its MACs.

    Args:
        target: mean share of the source's MACs that selected routes shall take, routers included; None leaves
            the cost free, and nothing is calibrated.
        teaching: "relaxed" or "worth", see the module. With "worth", temperatures and terms of the routers
            (`tau`, `balance`, `diversity`, `consistency`) and `ramp` have no effect.
        branch_epochs, router_epochs, joint_epochs, hard_epochs: passes over the data; 0 leaves a phase out.
        tau: first and last temperature of the soft weights. Selection is always at temperature 1: that is
            what Gumbel noise samples from, whatever the temperature.
        balance: weight of `LoadBalance`; 0 leaves it out.
        diversity: weight of `RouteDiversity`; 0 leaves it out.
        distillation: weight of the soft cross entropy to the source; 0 leaves it out.
        consistency: weight of `gains.RouteConsistency`; 0 leaves it out.
        view: another augmentation that routers train on, while teachers see the samples as loaded.
        ramp: part of the joint phase over which the budget falls from full cost.
        branches, base, gates: optimizer settings, AdamW at 1e-2, 1e-3 and 1e-2.
        schedule: of all phases; cosine.
        clip: largest norm of the gradient.

    Raises:
        SpecError: settings out of range.
    """
    if target is not None:
        check_share(target)
    epochs = (branch_epochs, router_epochs, joint_epochs, hard_epochs)
    if min(tau) <= 0 or min(balance, diversity, distillation, consistency, *epochs) < 0 or not any(epochs):
        raise SpecError("temperatures are positive, weights and epochs at least 0, and some phase trains")
    if teaching not in ("relaxed", "worth"):
        raise SpecError(f"routers are taught by relaxed routes or by worth, got teaching={teaching!r}")
    if consistency and view is None:
        raise SpecError("consistency compares two views of a sample", fix="give view=, an augmentation")
    first, later = _budgets(target, ramp)
    terms: dict[str, Objective] = {"task": TaskLoss()}
    if distillation:
        terms["teacher"] = Distillation(weight=distillation)
    if diversity:
        terms["diversity"] = RouteDiversity(diversity)
    if consistency:
        terms["consistency"] = RouteConsistency(consistency)
    soft = {**terms, "balance": LoadBalance(balance)} if balance else terms
    parts = _Parts(
        branches=branches or Optimization("adamw", rate=1e-2),
        base=base or Optimization("adamw", rate=1e-3, decay=1e-2),
        gates=gates or Optimization("adamw", rate=1e-2),
        schedule=schedule or Schedule("cosine"),
        clip=clip,
    )
    matching = parts.matching(branch_epochs)
    if teaching == "worth":
        phases = (
            matching,
            parts.network_by_all(joint_epochs, distillation or 1.0),
            parts.routers_by_worth(router_epochs),
            parts.network_as_routed(hard_epochs),
        )
    else:
        average = 1.0 if distillation else None
        warm = Turn(Annealed(tau[0], tau[0]), terms, view)
        joint = Turn(Annealed(*tau), {**soft, **_selected(first)}, view)
        hard = Turn(Always(Learned()), {**terms, **later}, view)
        phases = (
            matching,
            parts.routers(warm, router_epochs),
            parts.together("joint", joint, joint_epochs, average, recalibrate=not hard_epochs),
            parts.together("hard", hard, hard_epochs, average, recalibrate=True),
        )
    return Recipe("routing", tuple(phase for phase in phases if phase is not None), "routing", target)


@dataclass(frozen=True, slots=True)
class _Parts:
    """Phases of both recipes, with the settings that all share; None for phases of no epochs."""

    branches: Optimization
    base: Optimization
    gates: Optimization
    schedule: Schedule
    clip: float | None

    def _phase(self, name: str, turns: tuple[Turn, ...], epochs: int, **more: Any) -> Phase | None:
        if not epochs:
            return None
        return Phase(name, turns, epochs, schedule=self.schedule, clip=self.clip, **more)

    def _network(self, name: str, turns: tuple[Turn, ...], epochs: int, **more: Any) -> Phase | None:
        return self._phase(name, turns, epochs, base=self.base, gates=self.gates, **more)

    def matching(self, epochs: int) -> Phase | None:
        """Alternatives learn what they stand in for."""
        turn = Turn(Always(Full()), {"matching": Matching()})
        return self._phase(
            "branches", (turn,), epochs, trains="inserted", base=self.branches, frozen_norms=True
        )

    def routers(self, turn: Turn, epochs: int) -> Phase | None:
        """Decision nets alone."""
        return self._phase("routers", (turn,), epochs, trains="gates", gates=self.gates, frozen_norms=True)

    def together(
        self, name: str, turn: Turn, epochs: int, average: float | None, *, recalibrate: bool
    ) -> Phase | None:
        """Everything."""
        return self._network(name, (turn,), epochs, average=average, recalibrate=recalibrate)

    def network_by_all(self, epochs: int, distillation: float) -> Phase | None:
        """The network on the full route, and on random ones that learn from it, too."""
        drawn: dict[str, Objective] = {"task": TaskLoss(), "teacher": Distillation(weight=distillation)}
        turns = Turn(Always(Full()), {"full": TaskLoss()}), Turn(Draw(per_sample=True), drawn)
        return self._network("joint", turns, epochs, trains="base", recalibrate=True)

    def routers_by_worth(self, epochs: int) -> Phase | None:
        """Decision nets alone learn what alternatives are worth to a sample."""
        drawn = Always(Learned(_DRAWN, noise=True))
        return self.routers(Turn(drawn, {"worth": RouteWorth()}, execution="sparse"), epochs)

    def network_as_routed(self, epochs: int) -> Phase | None:
        """The network on what its calibrated routers select."""
        turn = Turn(Always(Learned()), {"task": TaskLoss()}, execution="sparse")
        return self._network("hard", (turn,), epochs, trains="base", recalibrate=True, calibrate=True)


def _budgets(target: float | None, ramp: float) -> tuple[Mapping[str, Objective], Mapping[str, Objective]]:
    """Cost terms while the budget falls, and where it holds."""
    if target is None:
        return {}, {}
    return {"budget": Budget(target, ramp=ramp)}, {"budget": Budget(target)}


def _selected(terms: Mapping[str, Objective]) -> dict[str, Objective]:
    return {name: AsSelected(term) for name, term in terms.items()}


RECIPES = (routing,)
