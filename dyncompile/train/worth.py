"""Supervision of a single gate by what every column is worth to a sample. Ours, not a paper's.

    target = softmax_k(-loss_k / temperature - share_k)          loss_k: of the column's uniform sub-network
    term   = KL(target || softmax(logits)), mean over samples

A gate trained so ranks columns by benefit and price. It knows no target of MACs: calibration raises or lowers
the price (it shifts logits by a multiple of the shares), so one training serves all targets. Bounded targets
keep the few samples of very large loss from dominating, as they would in a regression of the losses.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

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
