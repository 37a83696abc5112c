"""What stands behind a graph's `policy` input: groups of rows, or rows that are decided on the way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dyncompile.errors import RouteError
from dyncompile.policies import Forced, Full, Policy, Smallest
from dyncompile.program import Choice, Decision, Domain, Route
from dyncompile.runtime.record import Execution

Ask = Callable[[str, Tensor, Tensor | None], Tensor]
"""``ask(choice, positions [n], logits [n, width])`` -> rows [n, width]."""


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of the batch that take the same way: their positions [n] and one decision per choice."""

    rows: Tensor
    decisions: Mapping[str, Decision]

    def decide(self, name: str, features: Sequence[Tensor]) -> Decision:
        """The decision that this group of rows has in common (the graph's `policy` input)."""
        return self.decisions[name]

    def column(self, name: str) -> int:
        """The column of a one-hot choice that these rows have in common."""
        return self.decisions[name].index


@dataclass(slots=True)
class Steered:
    """Rows that run a segment together: what was decided for them, and whom to ask for the rest."""

    rows: Tensor
    decisions: dict[str, Decision]
    ask: Ask

    def decide(self, name: str, features: Sequence[Tensor]) -> Decision:
        """The decision of one choice for these rows, asked for at most once."""
        if name not in self.decisions:
            self.decisions[name] = decision_of(self.ask(name, self.rows, features[0] if features else None))
        return self.decisions[name]

    def column(self, name: str) -> int:
        """The column of a one-hot choice that makes rows part, and that these rows have in common."""
        return self.decisions[name].index

    def narrowed(self, at: Tensor) -> Some:
        """The rows at positions `at` [n]."""
        return Some(self, at)


@dataclass(slots=True)
class Some:
    """Some rows of those that run together: they have the decisions of all."""

    whole: Steered | Some
    at: Tensor
    decisions: dict[str, Decision] = field(default_factory=dict[str, Decision])

    @property
    def rows(self) -> Tensor:
        """Positions in the batch: int64 [n]."""
        return self.whole.rows[self.at.to(self.whole.rows.device)]

    def decide(self, name: str, features: Sequence[Tensor]) -> Decision:
        """The part of a decision that concerns these rows."""
        if name not in self.decisions:
            one = self.whole.decide(name, features)
            self.decisions[name] = Decision(_taken(one.rows, self.at), one.index)
        return self.decisions[name]

    def column(self, name: str) -> int:
        """The column of a one-hot choice that makes rows part: that of all."""
        return self.whole.column(name)

    def narrowed(self, at: Tensor) -> Some:
        """The rows at positions `at` [n] of these."""
        return Some(self, at)


@dataclass(frozen=True, slots=True)
class Deciding:
    """Decides for all rows at once, while the graph runs, and keeps what it decided.

    `early` are the predictions that exits decide on.
    """

    policy: Policy
    choices: Mapping[str, Choice]
    rows: Tensor
    route: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    logits: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    early: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def decide(self, name: str, features: Sequence[Tensor]) -> Decision:
        """A decision with a row per sample, which only masked execution can carry out."""
        logits = features[0] if features and self.policy.reads_gates else None
        self.early.update((name, prediction) for prediction in features[1:])
        self.route[name] = self.policy.decide(self.choices[name], len(self.rows), logits)
        if logits is not None:
            self.logits[name] = logits
        return Decision(self.route[name], -1)


def check_names(policy: Policy, choices: Mapping[str, Choice]) -> None:
    """A forced route names choices of the model. Raises RouteError."""
    unknown = sorted(set(policy.route) - set(choices)) if isinstance(policy, Forced) else []
    if unknown:
        raise RouteError(f"no choice is named {unknown}", fix=f"choices are: {sorted(choices)}")


def is_relaxed(policy: Policy, choices: Mapping[str, Choice]) -> bool:
    """Whether learned rows may lie between what their domains allow: then rows cannot be grouped by them."""
    return not getattr(policy, "hard", True) and any(one.domain in _RELAXED for one in choices.values())


def runs_masked(policy: Policy, execution: Execution, *, relaxed: bool, trains: bool = False) -> bool:
    """Whether rows run masked, as those do whose decisions are relaxed, or train what decides.

    Raises RouteError where relaxed decisions are to run in groups.
    """
    if execution == "dense" or (execution == "auto" and (relaxed or trains)):
        return True
    if relaxed:
        raise RouteError(
            f"{policy} relaxes decisions, which only dense execution runs",
            fix='hard=True, or execution="dense"',
        )
    return False


_RELAXED = (Domain.ONE_HOT, Domain.SIMPLEX, Domain.BITS)
_SOUND = (Full, Smallest, Forced)
"""Policies whose decisions lie in the domain: a choice's own rows, or rows that they have checked."""


def plan_route(policy: Policy, choices: Mapping[str, Choice], rows: int) -> Route:
    """Decisions that need no decision net, checked against the choices' names and domains."""
    check_names(policy, choices)
    found = {name: policy.decide(choice, rows, None) for name, choice in choices.items()}
    if not isinstance(policy, _SOUND):
        for name, choice in choices.items():
            choice.check(found[name])
    return found


def group_rows(
    route: Route, choices: Mapping[str, Choice], rows: int, parting: Collection[str]
) -> list[Group]:
    """Groups of rows that cannot run together, in order of first appearance; one group for an empty batch.

    Rows part by the choices in `parting`; decisions of others differ within a group.
    """
    whole = Group(torch.arange(rows), {name: decision_of(values) for name, values in route.items()})
    return split_rows(whole, [(choices[name], values) for name, values in route.items()], parting)


def split_rows(
    group: Group, decided: Sequence[tuple[Choice, Tensor]], parting: Collection[str]
) -> list[Group]:
    """Parts of a group by new decisions: choice and rows [n, width]. Positions count within the group."""
    keys = [values.detach().cpu() for choice, values in decided if choice.name in parting]
    count = len(group.rows)
    if not keys or count == 0:
        return [Group(torch.arange(count), {c.name: decision_of(values) for c, values in decided})]
    at_of: dict[tuple[float, ...], list[int]] = {}
    table: list[list[float]] = torch.cat(keys, dim=1).tolist()  # pyright: ignore
    for position, key in enumerate(table):
        at_of.setdefault(tuple(key), []).append(position)
    members = [torch.tensor(positions) for positions in at_of.values()]
    return [Group(at, {c.name: decision_of(_taken(v, at)) for c, v in decided}) for at in members]


def way_of(decision: Decision) -> tuple[float, ...]:
    """What tells groups apart that a decision was taken for."""
    first: list[list[float]] = decision.rows[:1].tolist()  # pyright: ignore
    return tuple(first[0]) if first else ()


def _taken(values: Tensor, at: Tensor) -> Tensor:
    return values if len(at) == len(values) else values[at.to(values.device)]


def decision_of(rows: Tensor) -> Decision:
    """A decision whose rows all run alike; column 0 where there is no row to ask."""
    return Decision(rows, int(rows[0].argmax()) if len(rows) and rows.shape[1] > 1 else 0)
