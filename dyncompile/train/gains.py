"""Terms for decision nets that switch parts on and off: choices of gains or bits (LC-Net and its relatives).

    z [B, width]   activity: 1 where a column is on. The gradient of a gain's activity is that of the gain
                   itself (straight-through); a bit is its own activity.
    p [B, width]   opening, in [0, 1], never noisy: a gain itself, or the sigmoid of a bit's logit.

Losses and weights of LC-Net ("Fully Dynamic Inference with Deep Neural Networks", 2021) are not known to us.
These are terms of its relatives; `Budget` holds the cost. Means over a batch are means over the samples that
one process sees in one pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dyncompile.errors import InputError, SpecError
from dyncompile.policies import Learned
from dyncompile.program import SWITCHES, Choice, Domain, activity
from dyncompile.selection import compiled
from dyncompile.train.beta import LARGEST, beta_cdf
from dyncompile.train.columns import gate_logits, learned_choices
from dyncompile.train.phase import Moment

_STEEPNESS = 4.0
"""What logits of gains are multiplied by where they are read like those of bits."""


@dataclass(frozen=True, slots=True)
class RateTargets:
    """``weight mean_l (t_l - mean_batch z_l)^2``: the rate at which every gate is on over a batch.

    The term of ConvNet-AIG (Veit and Belongie, ECCV 2018), read in its code, where t_l is 0.6 for all layers
    of CIFAR networks and a list by layer for ImageNet, and the weight is 2. l runs over choices; z_l of a
    choice with several columns (channels) is their mean, which is ours.

    Attributes:
        rates: t, one for all choices, or by pattern: a regular expression that is searched in a choice's
            name. The first that matches counts; choices that none matches are left alone.
        weight: factor.

    Raises when called:
        SpecError: no choice of gains or bits has a decision net, the turn's policy does not ask it, or a
            pattern matches none of them.
    """

    rates: float | Mapping[str, float]
    weight: float = 2.0

    def __post_init__(self) -> None:
        bad = [f"{name or 'all'}: {rate}" for name, rate in self._by_pattern.items() if not 0 <= rate <= 1]
        if bad or not self._by_pattern or self.weight < 0:
            raise SpecError(
                "rate targets are shares of samples in [0, 1], at least one, and their weight is at least 0; "
                f"got {', '.join(bad) or self}"
            )
        for pattern in self._by_pattern:
            compiled(pattern)

    @property
    def _by_pattern(self) -> Mapping[str, float]:
        return self.rates if isinstance(self.rates, Mapping) else {"": self.rates}

    def __call__(self, moment: Moment) -> Tensor:
        """A scalar."""
        choices = {c.name: c for c in learned_choices(moment.dyn, "a rate target", SWITCHES)}
        gate_logits(moment, [*choices.values()])
        errors = [
            target - activity(choices[name], moment.record.route[name]).mean()
            for name, target in self.targets([*choices]).items()
        ]
        return self.weight * torch.stack(errors).square().mean()

    def targets(self, names: Sequence[str]) -> dict[str, float]:
        """Choice name -> its rate. Raises SpecError where a pattern matches none of the names."""
        patterns = {compiled(pattern): rate for pattern, rate in self._by_pattern.items()}
        idle = [one.pattern for one in patterns if not any(one.search(name) for name in names)]
        if idle:
            raise SpecError(
                f"no choice is matched by {idle}", fix=f"choices with gains or bits are: {', '.join(names)}"
            )
        found = {name: next((r for p, r in patterns.items() if p.search(name)), None) for name in names}
        return {name: rate for name, rate in found.items() if rate is not None}


@dataclass(frozen=True, slots=True)
class BatchShaping:
    """``weight sum_gates mean_i (F(p_(i)) - i / (N + 1))^2``: openings over a batch follow Beta(alpha, beta).

    p_(1) <= ... <= p_(N) are the openings of one gate (a column) for the samples of a batch, F is the
    distribution function of Beta(alpha, beta): the Cramer-von Mises distance of Bejnordi et al.,
    "Batch-Shaping for Learning Conditional Channel Gated Networks" (ICLR 2020). With parameters below 1 a
    gate is driven to be on for some samples and off for others, instead of being the same for all. For gains
    p is here the sigmoid of 4 times the logit, so that they too are on above p = 1/2: gains themselves,
    spread over [0, 1], would all be on. At 4 most of the mass lies where gains move freely, from -1 to 2.

    Verified in the code that its authors' company published (Qualcomm, 2023): the distance, its mean over
    samples, no treatment of ties, the density bounded in the gradient. That code has the mean over gates
    where we sum, as far as we know with the paper. Not verified: alpha and beta; the weight is what a
    re-implementation says of the paper. The paper lets the weight fall during training; this one is constant.

    Raises when called:
        SpecError: no choice of gains or bits has a decision net, or the turn's policy does not ask it.
    """

    alpha: float = 0.6
    beta: float = 0.4
    weight: float = 0.75

    def __post_init__(self) -> None:
        if not (0 < self.alpha <= LARGEST and 0 < self.beta <= LARGEST) or self.weight < 0:
            raise SpecError(
                f"batch shaping takes alpha and beta in (0, {LARGEST:g}] and weight >= 0; got {self}"
            )

    def __call__(self, moment: Moment) -> Tensor:
        """A scalar."""
        choices = learned_choices(moment.dyn, "batch shaping", SWITCHES)
        logits = gate_logits(moment, choices)
        scaled = [logits[c.name].float() * (_STEEPNESS if c.domain is Domain.GAINS else 1) for c in choices]
        ordered = torch.cat(scaled, 1).sigmoid().sort(stable=True, dim=0).values
        count = len(ordered)
        empirical = torch.arange(1, count + 1, device=ordered.device).double()[:, None] / (count + 1)
        distance = beta_cdf(ordered, self.alpha, self.beta) - empirical
        return (self.weight * distance.square().mean(0).sum()).float()


@dataclass(frozen=True, slots=True)
class RouteConsistency:
    """``weight mean (p(view) - p(as loaded))^2``: two views of a sample open the same gates,
    or weigh alternatives alike. Ours.

    The turn looks at another view of its samples (`Turn.view`). The teacher looks at them as loaded, and no
    gradient reaches it: the moving average where the phase keeps one, else the present weights, in evaluation
    mode. The mean is over samples and columns, then over choices. CoDiNet's code trains consistent routes by
    hinges on distances of routing vectors, which are not rebuilt here.

    Raises when called:
        SpecError: no choice of gains, bits or weights has a decision net, or the turn's policy asks none.
        InputError: the view changes the number of samples.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise SpecError(f"a weight is at least 0, got {self.weight}")

    def __call__(self, moment: Moment) -> Tensor:
        """A scalar."""
        choices = learned_choices(moment.dyn, "consistency of routes", (*SWITCHES, Domain.SIMPLEX))
        ours = _openings(gate_logits(moment, choices), choices)
        taught = _taught(moment, choices)
        terms = [_apart(ours[c.name], taught[c.name].detach()) for c in choices]
        return self.weight * torch.stack(terms).mean()


def _openings(logits: Mapping[str, Tensor], choices: Sequence[Choice]) -> dict[str, Tensor]:
    """In [0, 1], float32 [B, width] by choice."""
    relaxed = Learned(hard=False)
    return {c.name: relaxed.decide(c, len(logits[c.name]), logits[c.name]) for c in choices}


def _taught(moment: Moment, choices: Sequence[Choice]) -> dict[str, Tensor]:
    """The teacher's openings; its decisions where an earlier turn gave them and left no logits."""
    record = moment.teacher(Learned())
    asked = [choice for choice in choices if choice.name in record.logits]
    return {**record.route, **_openings(record.logits, asked)}


def _apart(ours: Tensor, theirs: Tensor) -> Tensor:
    if ours.shape != theirs.shape:
        raise InputError(
            f"decisions of two views differ in shape: {list(ours.shape)} and {list(theirs.shape)}",
            fix="a view must keep the number of samples",
        )
    return (ours - theirs).square().mean()
