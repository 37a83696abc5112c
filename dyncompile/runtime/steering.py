"""How a batch of mixed decisions runs: rows are grouped by route, each group runs once at its own sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dyncompile.errors import RouteError
from dyncompile.policies import Forced, Policy
from dyncompile.program import Choice, Decision, Route


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of the batch that share a route: their positions [n] and one decision per choice."""

    rows: Tensor
    decisions: Mapping[str, Decision]

    def decide(self, name: str, features: Sequence[Tensor]) -> Decision:
        """The decision that this group of rows has in common (the graph's `policy` input)."""
        return self.decisions[name]


def plan_route(policy: Policy, choices: Mapping[str, Choice], rows: int) -> Route:
    """Decisions of every choice for a batch, checked against the choices' names and domains."""
    unknown = sorted(set(policy.route) - set(choices)) if isinstance(policy, Forced) else []
    if unknown:
        raise RouteError(f"no choice is named {unknown}", fix=f"choices are: {sorted(choices)}")
    return {name: choice.check(policy.decide(choice, rows, None)) for name, choice in choices.items()}


def group_rows(route: Route, rows: int) -> list[Group]:
    """Groups of equal routes in order of first appearance; a single group for an empty or uniform batch."""
    if not route or rows == 0:
        return [Group(torch.arange(rows), {name: _decision(values) for name, values in route.items()})]
    table = torch.cat([values for values in route.values()], dim=1)
    keys: list[list[float]] = table.tolist()  # pyright: ignore
    at_of: dict[tuple[float, ...], list[int]] = {}
    for position, key in enumerate(keys):
        at_of.setdefault(tuple(key), []).append(position)
    members = [torch.tensor(positions) for positions in at_of.values()]
    return [Group(at, {name: _decision(values[at]) for name, values in route.items()}) for at in members]


def _decision(rows: Tensor) -> Decision:
    """A decision whose rows are all the same; column 0 where there is no row to ask."""
    return Decision(rows, int(rows[0].argmax()) if len(rows) else 0)
