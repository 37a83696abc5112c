"""Columns of learned choices in the order of what they cost, and how evaluation looks on while training."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from dyncompile.errors import SpecError
from dyncompile.policies import Forced, Full, Smallest
from dyncompile.program import Choice, Domain
from dyncompile.runtime.model import DynamicModel


def learned_choices(dyn: DynamicModel, what: str) -> list[Choice]:
    """The one-hot choices that a decision net decides.

    Raises:
        SpecError: there is none; `what` says who asked.
    """
    found = [dyn.choices[name] for name in dyn.gated if dyn.choices[name].domain is Domain.ONE_HOT]
    if found:
        return found
    listed = [f"{c.name} ({c.domain.value})" for c in dyn.choices.values()]
    raise SpecError(
        f"{what} needs a decision net that picks one of several columns, and this model has none",
        where=f"choices: {', '.join(listed) or 'none'}",
        fix="dynamize with gates, e.g. method='dsnet(gate=True)', or leave this part of the recipe out",
    )


def column_shares(dyn: DynamicModel, choice: Choice) -> Tensor:
    """MACs of each column relative to the source, the other choices at full: float64 [width]."""
    rows = {other.name: torch.tensor([other.full] * choice.width) for other in dyn.choices.values()}
    rows[choice.name] = torch.eye(choice.width)
    return (dyn.macs(rows) / dyn.static_macs).detach().cpu()


def levels(dyn: DynamicModel, choices: Sequence[Choice]) -> list[dict[str, int]]:
    """Uniform sub-networks from the cheapest to the costliest: one column per choice.

    There are as many as the widest choice has columns; narrower choices stay at a column for several levels.
    """
    order = {c.name: _ascending(column_shares(dyn, c)) for c in choices}
    last = max(c.width for c in choices) - 1
    return [
        {c.name: order[c.name][round(level * (c.width - 1) / max(last, 1))] for c in choices}
        for level in range(last + 1)
    ]


def _ascending(values: Tensor) -> list[int]:
    return values.argsort(stable=True).tolist()  # pyright: ignore


def forced(choices: Iterable[Choice], columns: Mapping[str, int]) -> Forced:
    """Every one of `choices` at its column for all samples; other choices at full capacity."""
    return Forced({c.name: torch.tensor([c.row(columns[c.name])]) for c in choices})


def reachable_shares(dyn: DynamicModel) -> tuple[float, float]:
    """Shares of the source's MACs of the smallest and of the full route, decision nets included."""
    return _share_of(dyn, Smallest()), _share_of(dyn, Full())


def _share_of(dyn: DynamicModel, policy: Smallest | Full) -> float:
    rows = {name: policy.decide(choice, 1, None) for name, choice in dyn.choices.items()}
    return (float(dyn.macs(rows)[0]) + dyn.decision_macs) / dyn.static_macs


def check_share(target: float) -> None:
    """Raises SpecError for what is no share of the source's MACs."""
    if not 0 < target <= 1:
        raise SpecError(f"a target is a share of the source's MACs in (0, 1], got {target}")


def check_target(dyn: DynamicModel, target: float) -> None:
    """Raises SpecError where no route is as cheap as `target`, a share of the source's MACs."""
    check_share(target)
    least, _ = reachable_shares(dyn)
    if target < least:
        raise SpecError(
            f"the target of {target:.1%} of the source's MACs ({target * dyn.static_macs:,.0f}) is below the "
            f"smallest route's {least:.1%} ({least * dyn.static_macs:,.0f}, decision nets included)",
            fix="ask for more, or offer narrower columns",
        )


@contextmanager
def evaluating(dyn: DynamicModel) -> Generator[None]:
    """The evaluation graph without gradients; afterwards the mode is as before."""
    training = dyn.training
    dyn.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        dyn.train(training)
