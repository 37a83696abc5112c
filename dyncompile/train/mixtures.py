"""Terms for decision nets that weigh alternatives (Dynamic Routing Networks and relatives).

    p [B, width]   softmax of a choice's logits, never noisy, at temperature 1

The losses of "Dynamic Routing Networks" (2021) are not verified; these are what its relatives use. Means over
a batch are means over the samples that one process sees in one pass.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dyncompile.errors import SpecError
from dyncompile.policies import Learned
from dyncompile.program import Domain
from dyncompile.train.columns import gate_logits, learned_choices
from dyncompile.train.phase import Moment, Objective

MIXTURES = (Domain.SIMPLEX,)


@dataclass(frozen=True, slots=True)
class LoadBalance:
    """``weight mean_choices Var(m) / Mean(m)^2``, m [width] the mean of p over the batch.

    The squared coefficient of variation of importance (Shazeer et al., ICLR 2017). It is 0 where all
    alternatives are used alike, and so fights a start at the original alone: it rises from 0.

    Attributes:
        weight: factor.
        ramp: part of the phase over which it rises from 0; 0: at once.

    Raises when called:
        SpecError: no choice of weights has a decision net, or the turn's policy does not ask it.
    """

    weight: float = 0.01
    ramp: float = 1.0

    def __post_init__(self) -> None:
        if self.weight < 0 or not 0 <= self.ramp <= 1:
            raise SpecError(f"load balance has a weight >= 0 and a ramp in [0, 1], got {self}")

    def __call__(self, moment: Moment) -> Tensor:
        """A scalar."""
        risen = min(1.0, moment.clock.progress / self.ramp) if self.ramp else 1.0
        terms = [_variation(p.mean(0)) for p in _probabilities(moment, "load balance")]
        return self.weight * risen * torch.stack(terms).mean()


def _variation(means: Tensor) -> Tensor:
    return means.var(correction=0) / means.mean().square()


@dataclass(frozen=True, slots=True)
class RouteDiversity:
    """``-weight mean_choices (H(mean p) - mean H(p))``: routes differ between samples and are certain.

    The information that a decision holds about its sample, in nats; ours, against routers that do the same
    for all samples.

    Raises when called:
        SpecError: as `LoadBalance`.
    """

    weight: float = 0.01

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise SpecError(f"a weight is at least 0, got {self.weight}")

    def __call__(self, moment: Moment) -> Tensor:
        """A scalar."""
        found = _probabilities(moment, "diversity of routes")
        terms = [_entropy(p.mean(0, keepdim=True)).mean() - _entropy(p).mean() for p in found]
        return -self.weight * torch.stack(terms).mean()


def _entropy(p: Tensor) -> Tensor:
    """Entropy of each row, in nats: [B]."""
    return -torch.xlogy(p, p).sum(1)


@dataclass(frozen=True, slots=True)
class AsSelected:
    """A term that sees the routes which inference would take, where the turn itself weighs all alternatives.

    Relaxed weights are all above 0, so that a budget would count every alternative in full. The gradient of a
    selected route is straight-through: that of the softmax.
    """

    term: Objective

    def __call__(self, moment: Moment) -> Tensor:
        """The term's scalar."""
        rule, record = Learned(), moment.record
        chosen = {
            c.name: rule.decide(c, len(record.logits[c.name]), record.logits[c.name])
            for c in learned_choices(moment.dyn, "selection", MIXTURES)
            if c.name in record.logits
        }
        return self.term(replace(moment, record=replace(record, route={**record.route, **chosen})))


def _probabilities(moment: Moment, what: str) -> list[Tensor]:
    logits = gate_logits(moment, learned_choices(moment.dyn, what, MIXTURES))
    return [one.float().softmax(1) for one in logits.values()]


@dataclass(frozen=True, slots=True)
class Matching:
    """``mean_k |f_k(x) - f_0(x)|^2 / |f_0(x) - mean f_0|^2``: alternatives learn what they stand in for.

    Layer-wise regression: x and f_0(x) are those of the network at full capacity, whatever the turn decides.

    Raises when called:
        SpecError: the model has no alternatives with parameters.
    """

    def __call__(self, moment: Moment) -> Tensor:
        """A scalar; 1 is as good as a constant."""
        pairs = moment.dyn.alternatives(*moment.batch.args, **moment.batch.kwargs)
        if not pairs:
            raise SpecError(
                "there are no alternatives to fit",
                fix="leave this phase out, or offer candidates with parameters",
            )
        return torch.stack([_unexplained(source.detach(), other) for source, other in pairs]).mean()


def _unexplained(source: Tensor, other: Tensor) -> Tensor:
    """Squared error over the variance of the source, over all values."""
    error = (other.float() - source.float()).square().mean()
    return error / source.float().var(correction=0).clamp(min=1e-12)
