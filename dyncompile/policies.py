"""Who decides: policies turn a choice into rows of decisions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from dyncompile.errors import RouteError, SpecError
from dyncompile.program import Choice, Domain, Route, Selection
from dyncompile.seeds import generator_of


@runtime_checkable
class Policy(Protocol):
    """Decides choices. `logits` [B, width] come from the choice's decision net; None where it has none.

    A policy that does not read logits says so (`reads_gates`), and no decision net runs for it.
    """

    reads_gates: ClassVar[bool]
    """Whether decisions depend on `logits`."""

    def decide(self, choice: Choice, rows: int, logits: Tensor | None) -> Tensor:
        """Decisions [rows, width] in the choice's domain."""
        ...


@dataclass(frozen=True, slots=True)
class Full:
    """Everything at full capacity: the source network."""

    reads_gates: ClassVar[bool] = False

    def decide(self, choice: Choice, rows: int, logits: Tensor | None) -> Tensor:
        """`choice.full` for every row."""
        return torch.tensor([choice.full]).expand(rows, -1)


@dataclass(frozen=True, slots=True)
class Smallest:
    """Everything at its cheapest."""

    reads_gates: ClassVar[bool] = False

    def decide(self, choice: Choice, rows: int, logits: Tensor | None) -> Tensor:
        """`choice.smallest` for every row."""
        return torch.tensor([choice.smallest]).expand(rows, -1)


@dataclass(frozen=True, slots=True)
class Forced:
    """The given route. One row serves the whole batch.

    Choices that the route leaves out run at full capacity.
    """

    reads_gates: ClassVar[bool] = False

    route: Route = field(default_factory=dict[str, Tensor])

    def decide(self, choice: Choice, rows: int, logits: Tensor | None) -> Tensor:
        """The route's rows; raises RouteError when they do not fit the batch or the domain."""
        if choice.name not in self.route:
            return Full().decide(choice, rows, logits)
        given = choice.check(self.route[choice.name])
        if given.shape[0] not in (1, rows):
            raise RouteError(
                f"the route has {given.shape[0]} rows for choice {choice.name!r}, the batch has {rows}",
                fix="give one row per sample, or a single row for all",
            )
        return given.expand(rows, -1)


@dataclass(frozen=True, slots=True)
class Sampled:
    """Uniformly random decisions, the same on every process for the same seed (supernet training).

    One draw serves the whole batch; with `per_sample` every row draws its own. The draw depends on the seed
    and on the choice's name alone, and leaves torch's global generators as they are.
    """

    reads_gates: ClassVar[bool] = False

    seed: int
    per_sample: bool = False

    def decide(self, choice: Choice, rows: int, logits: Tensor | None) -> Tensor:
        """One-hot rows; gains that are 0 or from a half to 1, evenly often; random bits in other domains.

        Rows of the simplex are one-hot or share their weight between two columns, evenly often, unless
        selection keeps one at most; coefficients of a mixture come from [0, 1).
        """
        generator = generator_of(f"{self.seed}:{choice.name}")
        draw = _DRAWS.get(choice.domain, _random_bits)
        if choice.selection is not None and choice.selection.top == 1:
            draw = _random_columns  # a sum of columns is never selected
        return draw(rows if self.per_sample else 1, choice.width, generator).expand(rows, -1)


def _random_columns(rows: int, width: int, generator: torch.Generator) -> Tensor:
    columns = torch.randint(width, (rows,), generator=generator)
    return F.one_hot(columns, width).float()


def _random_bits(rows: int, width: int, generator: torch.Generator) -> Tensor:
    return torch.randint(2, (rows, width), generator=generator).float()


def _random_gains(rows: int, width: int, generator: torch.Generator) -> Tensor:
    on = _random_bits(rows, width, generator)
    return on * (1 - torch.rand(rows, width, generator=generator, dtype=torch.float32) / 2)


def _random_mixtures(rows: int, width: int, generator: torch.Generator) -> Tensor:
    first, second = (_random_columns(rows, width, generator) for _ in range(2))
    share = torch.rand(rows, 1, generator=generator, dtype=torch.float32) * (1 - 2**-10)
    share = share * torch.randint(2, (rows, 1), generator=generator)
    return first * (1 - share) + second * share


def _random_coefficients(rows: int, width: int, generator: torch.Generator) -> Tensor:
    return torch.rand(rows, width, generator=generator, dtype=torch.float32)


_DRAWS: Mapping[Domain, Callable[[int, int, torch.Generator], Tensor]] = {
    Domain.ONE_HOT: _random_columns,
    Domain.GAINS: _random_gains,
    Domain.SIMPLEX: _random_mixtures,
    Domain.MIXTURE: _random_coefficients,
}


@dataclass(frozen=True, slots=True)
class Learned:
    """What the decision nets say. A choice without one has nothing to learn from and runs at full capacity.

    one-hot   the column of the largest logit; its gradient is that of the softmax at temperature `tau`
              (straight-through; Jang et al., ICLR 2017)
    bits      on where the logit is above 0; its gradient is that of the sigmoid at temperature `tau`
    gains     the logits themselves, capped to [0, 1]: exactly 0 switches off, what is on is scaled. The
              gradient passes both ways through the cap, but never pushes a logit beyond -1 or 2, from where
              it would take long to come back
    mixture   what the net says: its activation is part of the graph
    exit      stop where the confidence is above its threshold, which is the logit being above 0; no gradient

    simplex   the softmax at temperature `tau`, made sparse by the choice's selection: what is not kept is
              exactly 0, what is kept is renormalized. The gradient is that of the whole softmax

    That gains end at 1 is our choice: LC-Net's activation is not verified ("ReLU1", a ReLU capped at 1, is
    inferred from re-implementations).

    Evaluation is deterministic unless it asks for `noise`: that of Gumbel on the logits of columns, logistic
    on those of bits, none on gains. Training recipes ask for it. With `hard=False` the relaxed row itself is
    the decision (gains are none other), which only dense execution can run. Decisions are float32.
    """

    reads_gates: ClassVar[bool] = True

    tau: float = 1.0
    hard: bool = True
    noise: bool = False

    def __post_init__(self) -> None:
        if not self.tau > 0:
            raise SpecError(f"a temperature is above 0, got {self.tau}")

    def decide(self, choice: Choice, rows: int, logits: Tensor | None) -> Tensor:
        """Decisions of the logits [rows, width]."""
        if logits is None:
            return Full().decide(choice, rows, logits)
        return _LEARNED[choice.domain](self, choice, logits.float())


def _learned_column(how: Learned, choice: Choice, logits: Tensor) -> Tensor:
    scores = logits + _gumbel(logits) if how.noise else logits
    soft = (scores / how.tau).softmax(1)
    return _hardened(F.one_hot(scores.argmax(1), scores.shape[1]).float(), soft) if how.hard else soft


def _learned_weights(how: Learned, choice: Choice, logits: Tensor) -> Tensor:
    scores = logits + _gumbel(logits) if how.noise else logits
    soft = (scores / how.tau).softmax(1)
    selection = choice.selection or Selection(top=1)
    return _hardened(selection.kept(soft.detach()), soft) if how.hard else soft


def _learned_bits(how: Learned, choice: Choice, logits: Tensor) -> Tensor:
    scores = logits + _logistic(logits) if how.noise else logits
    soft = (scores / how.tau).sigmoid()
    return _hardened((scores > 0).float(), soft) if how.hard else soft


def _learned_mixture(how: Learned, choice: Choice, logits: Tensor) -> Tensor:
    return logits


def _learned_exit(how: Learned, choice: Choice, logits: Tensor) -> Tensor:
    return (logits > 0).float()


def _learned_gains(how: Learned, choice: Choice, logits: Tensor) -> Tensor:
    if not (logits.requires_grad and torch.is_grad_enabled()):
        return logits.clamp(0, 1)
    return cast(Any, _Capped).apply(logits)


_LEARNED: Mapping[Domain, Callable[[Learned, Choice, Tensor], Tensor]] = {
    Domain.ONE_HOT: _learned_column,
    Domain.SIMPLEX: _learned_weights,
    Domain.BITS: _learned_bits,
    Domain.GAINS: _learned_gains,
    Domain.MIXTURE: _learned_mixture,
    Domain.EXIT: _learned_exit,
}


def _hardened(hard: Tensor, soft: Tensor) -> Tensor:
    """`hard` with the gradient of `soft`, where it has one."""
    return hard - soft.detach() + soft if soft.requires_grad else hard


class _Capped(torch.autograd.Function):
    """``clamp(x, 0, 1)`` with the gradient of x, except where a descent step would lead further outside.

    The derivative of a clamp is 0 outside of [0, 1]: a gate that has left it would stay there for good.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The values."""
        ctx.save_for_backward(x)
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradient, without what leads away below -1 and above 2."""
        (x,) = ctx.saved_tensors
        return gradient.masked_fill(((x <= -1) & (gradient > 0)) | ((x >= 2) & (gradient < 0)), 0)


def _gumbel(like: Tensor) -> Tensor:
    """Standard Gumbel noise from the global generator of the device."""
    return -torch.log(-torch.log(_uniform(like)))


def _logistic(like: Tensor) -> Tensor:
    """Standard logistic noise, the difference of two Gumbel ones, from the same generator."""
    return torch.logit(_uniform(like))


def _uniform(like: Tensor) -> Tensor:
    """Uniform noise in (0, 1)."""
    return torch.rand(like.shape, device=like.device).clamp(1e-20, 1 - 1e-7)


def route_of(choices: Mapping[str, Choice], columns: Mapping[str, int] | int, rows: int = 1) -> Route:
    """A one-hot route from column numbers: one for all choices, or one per choice name (others at full).

    Raises RouteError for choices and columns that do not exist.
    """
    out: dict[str, Tensor] = {}
    for choice in choices.values():
        column = columns if isinstance(columns, int) else columns.get(choice.name)
        if column is not None and not -choice.width <= column < choice.width:
            raise RouteError(
                f"choice {choice.name!r} has {choice.width} columns, and none is number {column}"
            )
        row = choice.full if column is None else choice.row(range(choice.width)[column])
        out[choice.name] = torch.tensor([row]).expand(rows, -1)
    unknown = set[str]() if isinstance(columns, int) else set(columns) - set(choices)
    if unknown:
        raise RouteError(f"no choice is named {sorted(unknown)}", fix=f"choices are: {sorted(choices)}")
    return out
