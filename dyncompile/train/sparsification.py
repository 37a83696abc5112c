"""Supervision of decision nets by what uniform sub-networks get right.

Sandwich gate sparsification (DS-Net, CVPR 2021) tells every gate which column each sample should take:

    try_best   0 where the smallest sub-network is right, else the last column            (DS-Net's code)
    give_up    the last column only where the largest is right and the smallest is not    (hard samples: 0)
    oracle     the smallest column whose uniform sub-network is right; the last where none is      (ours)

Columns count from the cheapest. The term is the cross entropy of the *raw* logits: DS-Net's code applies it
to noised softmax outputs, which floors its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dyncompile.errors import InputError, SpecError
from dyncompile.policies import Policy
from dyncompile.train.columns import column_shares, evaluating, forced, gate_logits, learned_choices, levels
from dyncompile.train.objectives import logits_of, target_of
from dyncompile.train.phase import Moment

Correct = Callable[[Any, Any], Tensor]
"""``correct(output, target)`` -> bool [B]."""

PerSample = Callable[[Any, Any], Tensor]
"""``losses(output, target)`` -> float [B]."""

MODES = ("try_best", "give_up", "oracle")


@dataclass(frozen=True, slots=True)
class Sparsification:
    """Cross entropy of every gate against the column that a sample should take, mean over gates and samples.

    Uniform sub-networks run in the evaluation graph, without gradients.

    Attributes:
        mode: which column that is.
        weight: factor; 1 in DS-Net's code.
        smoothing: label smoothing of the target column.
        correct: judges outputs; None compares the top-1 class with the label.

    Raises when called:
        SpecError: no choice has a decision net that picks columns, or the turn's policy does not ask it.
        InputError: `correct` does not give one bool per sample.
    """

    mode: Literal["try_best", "give_up", "oracle"] = "try_best"
    weight: float = 1.0
    smoothing: float = 0.0
    correct: Correct | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise SpecError(f"sparsification is one of {', '.join(MODES)}, got {self.mode!r}")
        if not 0 <= self.smoothing < 1:
            raise SpecError(f"smoothing lies in [0, 1), got {self.smoothing}")

    def __call__(self, moment: Moment) -> Tensor:
        """A scalar."""
        choices = learned_choices(moment.dyn, "sandwich gate sparsification")
        logits = gate_logits(moment, choices)
        found = levels(moment.dyn, choices, moment.cost)
        wanted = self.targets(moment, [forced(choices, level) for level in found])
        terms: list[Tensor] = []
        for choice in choices:
            scores = logits[choice.name]
            columns = torch.tensor([level[choice.name] for level in found])[wanted].to(scores.device)
            terms.append(F.cross_entropy(scores, columns, label_smoothing=self.smoothing))
        return self.weight * torch.stack(terms).mean()

    def targets(self, moment: Moment, networks: Sequence[Policy]) -> Tensor:
        """Which of the uniform `networks`, cheapest first, each sample should take: int64 [B], on CPU."""
        last = len(networks) - 1
        if self.mode == "oracle":
            right = [self._right(moment, network) for network in networks[:-1]]
            found = torch.stack([*right, torch.ones(len(right[0]), dtype=torch.bool)])
            return found.int().argmax(0)
        needs = ~self._right(moment, networks[0])
        if self.mode == "give_up":
            needs = needs & self._right(moment, networks[-1])
        return needs.long() * last

    def _right(self, moment: Moment, network: Policy) -> Tensor:
        """Which samples a sub-network gets right: bool [B], on CPU."""
        output = _output(moment, network)
        if self.correct is None:
            right = top1(output, target_of(moment.batch))
        else:
            right = self.correct(output, moment.batch.target)
        rows = len(next(iter(moment.record.logits.values())))
        if right.shape != (rows,):
            raise InputError(
                f"which outputs are correct is asked per sample, [{rows}], and came as {list(right.shape)}",
                fix="give Sparsification(correct=...), a function of (output, target) -> bool [B]",
            )
        return right.bool().cpu()


@dataclass(frozen=True, slots=True)
class ExpectedLoss:
    """The exact expected loss of a single gate, instead of a straight-through estimate. Ours, not a paper's.

        mean over samples of  sum_k softmax(logits)_k (loss_k + price share_k)

    All columns run in the evaluation graph without gradients, so only the gate learns, and without noise in
    its gradient. It costs as many forward passes as there are columns.

    Attributes:
        weight: factor.
        price: loss that the whole of the source's MACs is worth.
        losses: per-sample losses of an output; None is cross entropy.

    Raises when called:
        SpecError: the model has no gate that picks columns, or several.
    """

    weight: float = 1.0
    price: float = 0.0
    losses: PerSample | None = None

    def __call__(self, moment: Moment) -> Tensor:
        """A scalar."""
        logits, losses, shares = single_gate(moment, "the expected loss", self.losses)
        return self.weight * (logits.softmax(1) * (losses + self.price * shares)).sum(1).mean()


def single_gate(moment: Moment, what: str, losses: PerSample | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(logits [B, width], losses [B, width], shares of MACs [width]) of the only gate, cheapest column first.

    Losses are those of each column's uniform sub-network, cross entropy unless `losses` is given. Raises
    SpecError for several gates or none; `what` says who asked.
    """
    choices = learned_choices(moment.dyn, what)
    if len(choices) != 1:
        raise SpecError(
            f"{what} is for one gate, this model has {len(choices)}",
            where=f"choices: {', '.join(c.name for c in choices)}",
            fix="use Sparsification for several gates",
        )
    (choice,) = choices
    found = levels(moment.dyn, choices, moment.cost)
    order = [level[choice.name] for level in found]
    logits = gate_logits(moment, choices)[choice.name].float()[:, order]
    each = [_losses(_output(moment, forced(choices, level)), moment, losses) for level in found]
    shares = column_shares(moment.dyn, choice, moment.cost)[order].to(logits)
    return logits, torch.stack(each, 1).float(), shares


def _losses(output: Any, moment: Moment, losses: PerSample | None) -> Tensor:
    if losses is not None:
        return losses(output, moment.batch.target)
    return F.cross_entropy(logits_of(output).float(), target_of(moment.batch), reduction="none")


def _output(moment: Moment, network: Policy) -> Any:
    """What a uniform sub-network says of the turn's samples: evaluation graph, no gradients."""
    with evaluating(moment.dyn):
        return moment.dyn.record(*moment.batch.args, policy=network, **moment.batch.kwargs).output


def top1(output: Any, target: Tensor) -> Tensor:
    """Whether the likeliest class is the label, or the likeliest of probabilities: bool [B].

    `target` is labels [B] or probabilities [B, classes], the logits in `output` are [B, classes].
    """
    labels = target.argmax(-1) if target.is_floating_point() else target
    return logits_of(output).argmax(-1) == labels
