"""Supervision of gates by what every column is worth to a sample. Ours, not a paper's.

A single gate sees the loss of every column:

    target = softmax_k(-loss_k / temperature - share_k)          loss_k: of the column's uniform sub-network
    term   = KL(target || softmax(logits)), mean over samples

Several gates share what a route costs a sample, as a sum over choices:

    lost = q(full) - q(route)                                    q: probability of the sample's own class
    term = mean (sum_choices logits . (full - row) - lost / temperature)^2

A gate trained so ranks columns by benefit and price. It knows no target of MACs: calibration raises or lowers
the price (it shifts logits by a multiple of the shares), so one training serves all targets. Bounded targets
keep the few samples of very large loss from dominating, as they would in a regression of the losses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dyncompile.errors import SpecError
from dyncompile.policies import Full
from dyncompile.train.columns import gate_logits, learned_choices
from dyncompile.train.objectives import logits_of, target_of
from dyncompile.train.phase import Moment
from dyncompile.train.sparsification import single_gate


@dataclass(frozen=True, slots=True)
class Worth:
    """The term above, for cross-entropy losses.

    Raises when called:
        SpecError: the model has no gate that picks columns, or several, or the turn's policy does not ask it.
    """

    temperature: float = 0.5

    def __call__(self, moment: Moment) -> Tensor:
        """A scalar."""
        logits, losses, shares = single_gate(moment, "supervision by worth")
        target = (-losses / self.temperature - shares).softmax(1)
        return F.kl_div(logits.log_softmax(1), target, reduction="batchmean")


@dataclass(frozen=True, slots=True)
class RouteWorth:
    """The second term above, for classes: each choice learns its share of what the turn's routes lose.

    The turn draws routes, near to those that logits favor at present (`Learned(noise=True)`); they stay as
    drawn. Gates thus rank alternatives by benefit alone, sample by sample, and nothing presses them to a
    budget all at once; calibration sets the price. Losses of a route that are no sum over its choices average
    out over the routes that are drawn.

    Attributes:
        temperature: probability that a logit of 1 stands for, against noise of deviation 1.3.

    Raises when called:
        SpecError: no choice has a decision net that picks or weighs columns, or the turn does not ask it.
    """

    temperature: float = 0.1

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise SpecError(f"a temperature is positive, got {self.temperature}")

    def __call__(self, moment: Moment) -> Tensor:
        """A scalar."""
        choices = learned_choices(moment.dyn, "worth of routes")
        predicted = [
            (
                logits.float() * (logits.new_tensor(choice.full) - moment.record.route[choice.name].detach())
            ).sum(1)
            for choice, logits in zip(choices, gate_logits(moment, choices).values(), strict=True)
        ]
        with torch.no_grad():
            lost = _right(moment, moment.teacher(Full()).output) - _right(moment, moment.record.output)
        return F.mse_loss(torch.stack(predicted).sum(0), lost / self.temperature)


def _right(moment: Moment, output: object) -> Tensor:
    """Probability of each sample's own class: float [B]."""
    return logits_of(output).float().softmax(1).gather(1, target_of(moment.batch)[:, None])[:, 0]
