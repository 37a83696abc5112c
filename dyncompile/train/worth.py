"""Supervision of a single gate by what every column is worth to a sample. Ours, not a paper's.

    target = softmax_k(-loss_k / temperature - share_k)          loss_k: of the column's uniform sub-network
    term   = KL(target || softmax(logits)), mean over samples

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
from dyncompile.policies import Policy
from dyncompile.train.columns import column_shares, evaluating, forced, learned_choices, levels
from dyncompile.train.objectives import logits_of, target_of
from dyncompile.train.phase import Moment


@dataclass(frozen=True, slots=True)
class Worth:
    """The term above, for cross-entropy losses.

    Raises when called:
        SpecError: the model has no gate that picks columns, or several.
    """

    temperature: float = 0.5

    def __call__(self, moment: Moment) -> Tensor:
        """A scalar."""
        choices = learned_choices(moment.dyn, "supervision by worth")
        if len(choices) != 1:
            raise SpecError(f"supervision by worth is for one gate, this model has {len(choices)}")
        choice = choices[0]
        found = levels(moment.dyn, choices)
        order = [level[choice.name] for level in found]
        losses = torch.stack([_losses(moment, forced(choices, level)) for level in found], 1)
        shares = column_shares(moment.dyn, choice)[order].to(losses)
        target = (-losses / self.temperature - shares).softmax(1)
        logits = moment.record.logits[choice.name].float()[:, order]
        return F.kl_div(logits.log_softmax(1), target, reduction="batchmean")


def _losses(moment: Moment, network: Policy) -> Tensor:
    """Per sample [B], of a uniform sub-network in the evaluation graph, without gradients."""
    with evaluating(moment.dyn):
        output = moment.dyn.record(*moment.batch.args, policy=network, **moment.batch.kwargs).output
    return F.cross_entropy(logits_of(output).float(), target_of(moment.batch), reduction="none")
