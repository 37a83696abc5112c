"""Who decides: policies turn a choice into rows of decisions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from dyncompile.errors import RouteError
from dyncompile.program import Choice, Domain, Route


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
    """Uniformly random columns, the same on every process for the same seed (supernet training).

    One draw serves the whole batch; with `per_sample` every row draws its own. The draw depends on the seed
    and on the choice's name alone, and leaves torch's global generators as they are.
    """

    reads_gates: ClassVar[bool] = False

    seed: int
    per_sample: bool = False

    def decide(self, choice: Choice, rows: int, logits: Tensor | None) -> Tensor:
        """One-hot rows, or random bits for choices of that domain."""
        digest = hashlib.sha256(f"{self.seed}:{choice.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        draws = rows if self.per_sample else 1
        if choice.domain is Domain.ONE_HOT:
            columns = torch.randint(choice.width, (draws,), generator=generator)
            return torch.nn.functional.one_hot(columns, choice.width).float().expand(rows, -1)
        return torch.randint(2, (draws, choice.width), generator=generator).float().expand(rows, -1)


@dataclass(frozen=True, slots=True)
class Learned:
    """What the decision nets say. A choice without one has nothing to learn from and runs at full capacity.

    Evaluation takes the best column, without noise. Where gradients are on, a one-hot decision is
    straight-through: its value is hard, its gradient that of the softmax at temperature `tau` (Jang et al.,
    ICLR 2017). `noise` adds Gumbel noise to the logits; training recipes ask for it. With `hard=False` the
    relaxed row itself is the decision, which only dense execution can run.
    """

    reads_gates: ClassVar[bool] = True

    tau: float = 1.0
    hard: bool = True
    noise: bool = False

    def decide(self, choice: Choice, rows: int, logits: Tensor | None) -> Tensor:
        """The best column of the logits [rows, width], or its relaxation."""
        if logits is None:
            return Full().decide(choice, rows, logits)
        if choice.domain is not Domain.ONE_HOT:
            raise RouteError(f"decisions in {choice.domain.value} cannot be learned: choice {choice.name!r}")
        scores = logits.float() + _gumbel(logits) if self.noise else logits.float()
        hard = torch.nn.functional.one_hot(scores.argmax(1), choice.width).float()
        if self.hard and not (torch.is_grad_enabled() and logits.requires_grad):
            return hard
        soft = (scores / self.tau).softmax(1)
        return hard - soft.detach() + soft if self.hard else soft


def _gumbel(like: Tensor) -> Tensor:
    """Standard Gumbel noise from the global generator of the device."""
    uniform = torch.rand(like.shape, device=like.device).clamp(1e-20, 1 - 1e-7)
    return -torch.log(-torch.log(uniform))


def route_of(choices: Mapping[str, Choice], columns: Mapping[str, int] | int, rows: int = 1) -> Route:
    """A one-hot route from column numbers: one for all choices, or one per choice name (others at full)."""
    out: dict[str, Tensor] = {}
    for choice in choices.values():
        column = columns if isinstance(columns, int) else columns.get(choice.name)
        row = choice.full if column is None else choice.row(range(choice.width)[column])
        out[choice.name] = torch.tensor([row]).expand(rows, -1)
    unknown = set[str]() if isinstance(columns, int) else set(columns) - set(choices)
    if unknown:
        raise RouteError(f"no choice is named {sorted(unknown)}", fix=f"choices are: {sorted(choices)}")
    return out
