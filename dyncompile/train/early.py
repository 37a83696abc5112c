"""Training networks whose output may be an early one: all predictions learn, and nobody leaves meanwhile.

    L = loss(output) + sum_e weight_e loss(early_e)

Early predictions are on record in dense execution (`Record.early`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dyncompile.errors import SpecError
from dyncompile.policies import Full, Learned
from dyncompile.program import Choice, Domain
from dyncompile.seeds import generator_of
from dyncompile.train.objectives import logits_of, soft_cross_entropy
from dyncompile.train.phase import Clock, Moment


@dataclass(frozen=True, slots=True)
class Staying:
    """What decision nets say, but nobody leaves; coefficients of mixtures may be disturbed.

        a <- uniform / N + (1 - uniform) a             towards equal coefficients
        a_n <- 0 with probability `dropout`            the same bases in all layers of a sample

    Attributes:
        uniform: in [0, 1].
        dropout: in [0, 1). What is left is not scaled up.
        seed: of the bases that are dropped.
        tau, noise: of other choices, as in `Learned`.
    """

    reads_gates: ClassVar[bool] = True

    uniform: float = 0.0
    dropout: float = 0.0
    seed: int = 0
    tau: float = 1.0
    noise: bool = False

    def decide(self, choice: Choice, rows: int, logits: Tensor | None) -> Tensor:
        """Decisions [rows, width]."""
        if choice.domain is Domain.EXIT:
            return Full().decide(choice, rows, logits)
        found = Learned(self.tau, noise=self.noise).decide(choice, rows, logits)
        if choice.domain is not Domain.MIXTURE or logits is None:
            return found
        mixed = torch.unflatten(found, 1, (-1, choice.block))
        mixed = self.uniform / choice.block + (1 - self.uniform) * mixed
        if self.dropout:
            mixed = mixed * self._kept(choice, rows).to(mixed)
        return mixed.flatten(1)

    def _kept(self, choice: Choice, rows: int) -> Tensor:
        generator = generator_of(f"{self.seed}:{choice.name}")
        return torch.rand(rows, 1, choice.block, generator=generator) >= self.dropout


@dataclass(frozen=True, slots=True)
class WarmUp:
    """`Staying` by the clock: coefficients are equal at first, after `share` of the phase what the net says.

    Attributes:
        share: part of the phase; 0 starts with what the net says.
        dropout, tau, noise: see `Staying`.
    """

    share: float = 0.0
    dropout: float = 0.0
    tau: float = 1.0
    noise: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.share <= 1 and 0 <= self.dropout < 1) or self.tau <= 0:
            raise SpecError(
                "a warm-up is a part of the phase in [0, 1], dropout lies in [0, 1), tau is positive, "
                f"got {self}"
            )

    def __call__(self, clock: Clock) -> Staying:
        """The policy of this step."""
        uniform = max(0.0, 1 - clock.progress / self.share) if self.share else 0.0
        return Staying(uniform, self.dropout, clock.seed, self.tau, self.noise)


@dataclass(frozen=True, slots=True)
class EarlyLoss:
    """``sum_e weight_e loss(early_e, target)`` by the user's loss.

    Attributes:
        weights: one for all early predictions, or by the names of their choices; others count 1.

    Raises when called:
        SpecError: the turn made no early prediction.
    """

    weights: float | Mapping[str, float] = 1.0

    def __call__(self, moment: Moment) -> Tensor:
        """A scalar."""
        terms = [
            self._weight(name) * moment.loss(output, moment.batch.target)
            for name, output in early_outputs(moment).items()
        ]
        return torch.stack(terms).sum()

    def _weight(self, name: str) -> float:
        return self.weights.get(name, 1.0) if isinstance(self.weights, Mapping) else self.weights


@dataclass(frozen=True, slots=True)
class EarlyDistillation:
    """``weight sum_e H(softmax(output), early_e)``: early predictions learn from the final one, not it
    from them.
    """

    weight: float = 1.0
    temperature: float = 1.0

    def __call__(self, moment: Moment) -> Tensor:
        """A scalar."""
        final = logits_of(moment.record.output).detach().float()
        teacher = (final / self.temperature).softmax(-1)
        terms = [
            soft_cross_entropy(teacher, logits_of(output), self.temperature)
            for output in early_outputs(moment).values()
        ]
        return self.weight * torch.stack(terms).sum()


@dataclass(frozen=True, slots=True)
class Taught:
    """``weight (H(p, output) + early_weight sum_e H(p, early_e))``: p is what another network says.

    Attributes:
        teacher: takes the model's arguments; it runs in evaluation mode, without gradients.
        weight, temperature: as in `soft_cross_entropy`.
        early_weight: of early predictions; 0 leaves them out.
    """

    teacher: Callable[..., Any] = field(repr=False)
    weight: float = 1.0
    temperature: float = 1.0
    early_weight: float = 0.0

    def __call__(self, moment: Moment) -> Tensor:
        """A scalar."""
        if isinstance(self.teacher, nn.Module):
            self.teacher.eval()
        with torch.no_grad():
            said = logits_of(self.teacher(*moment.batch.args, **moment.batch.kwargs)).float()
        p = (said / self.temperature).softmax(-1)
        total = soft_cross_entropy(p, logits_of(moment.record.output), self.temperature)
        if self.early_weight:
            for output in early_outputs(moment).values():
                total = total + self.early_weight * soft_cross_entropy(p, logits_of(output), self.temperature)
        return self.weight * total


def early_outputs(moment: Moment) -> Mapping[str, Any]:
    """Early predictions of a turn in the source's output structure, by choice. SpecError without any."""
    if not moment.record.early:
        raise SpecError(
            "the turn made no early prediction",
            fix='dynamize with exits or a preview, and let the turn run with execution="dense"',
        )
    return moment.record.early
