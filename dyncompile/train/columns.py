"""Columns of learned choices in the order of what they cost, and how evaluation looks on while training."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from dyncompile.cost import Cost, ModelMacs
from dyncompile.errors import SpecError
from dyncompile.policies import Forced, Full, Smallest
from dyncompile.program import Choice, Domain
from dyncompile.runtime.model import DynamicModel
from dyncompile.train.phase import Moment

COLUMNS = (Domain.ONE_HOT, Domain.SIMPLEX)
"""Domains whose rows pick one of several columns, or some of them by shares that sum to 1."""

_ACTS = {
    Domain.ONE_HOT: "picks one of several columns",
    Domain.SIMPLEX: "weighs several alternatives",
    Domain.GAINS: "scales parts and switches them off",
    Domain.BITS: "switches parts on and off",
}


def learned_choices(dyn: DynamicModel, what: str, domains: Sequence[Domain] = COLUMNS) -> list[Choice]:
    """The choices in `domains` that a decision net decides.

    Raises:
        SpecError: there is none; `what` says who asked.
    """
    found = [dyn.choices[name] for name in dyn.gated if dyn.choices[name].domain in domains]
    if found:
        return found
    listed = [f"{c.name} ({c.domain.value})" for c in dyn.choices.values()]
    method = "dsnet(gate=True)" if Domain.ONE_HOT in domains else "lcnet"
    raise SpecError(
        f"{what} needs a decision net that {' or '.join(_ACTS[domain] for domain in domains)}, "
        "and this model has none",
        where=f"choices: {', '.join(listed) or 'none'}",
        fix=f"dynamize with gates, e.g. method={method!r}, or leave this part of the recipe out",
    )


def gate_logits(moment: Moment, choices: Sequence[Choice]) -> dict[str, Tensor]:
    """Raw logits [B, width] of the choices' decision nets. SpecError where the turn did not ask them."""
    silent = [choice.name for choice in choices if choice.name not in moment.record.logits]
    if silent:
        raise SpecError(
            f"the turn's policy does not ask the decision nets of {silent}",
            fix="let the turn decide by Learned()",
        )
    return {choice.name: moment.record.logits[choice.name] for choice in choices}


def column_shares(dyn: DynamicModel, choice: Choice, cost: Cost | None = None) -> Tensor:
    """Cost of each column relative to the source, the other choices at full: float64 [width].

    Of a column that is picked it is that of the whole route. Of one that is switched on it is what that adds:
    the full route's less that without it. `cost` None counts MACs.
    """
    cost = ModelMacs(dyn) if cost is None else cost
    rows = _single_columns(choice)
    route = {one.name: torch.tensor([one.full]).expand(len(rows), -1) for one in dyn.choices.values()}
    found = (cost({**route, choice.name: rows}) / cost.source).detach().cpu()
    return found if choice.domain in COLUMNS else found[0] - found[1:]


def _single_columns(choice: Choice) -> Tensor:
    """Rows that one call prices: each column alone [width, width], or, of switches, the full row and then it
    without each column [1 + width, width].
    """
    if choice.domain in COLUMNS:
        return torch.eye(choice.width)
    rows = torch.tensor([choice.full]).repeat(1 + choice.width, 1)
    rows[1:].fill_diagonal_(0)
    return rows


def levels(dyn: DynamicModel, choices: Sequence[Choice], cost: Cost | None = None) -> list[dict[str, int]]:
    """Uniform sub-networks from the cheapest to the costliest: one column per choice.

    There are as many as the widest choice has columns; narrower choices stay at a column for several levels.
    """
    order = {c.name: _ascending(column_shares(dyn, c, cost)) for c in choices}
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


def reachable_shares(dyn: DynamicModel, cost: Cost | None = None) -> tuple[float, float]:
    """Shares of the source's cost of the smallest and of the full route, decision nets included."""
    cost = ModelMacs(dyn) if cost is None else cost
    return _share_of(dyn, Smallest(), cost), _share_of(dyn, Full(), cost)


def _share_of(dyn: DynamicModel, policy: Smallest | Full, cost: Cost) -> float:
    rows = {name: policy.decide(choice, 1, None) for name, choice in dyn.choices.items()}
    return float(cost.spent(rows)[0]) / cost.source


def check_share(target: float) -> None:
    """Raises SpecError for what is no share of the source's cost."""
    if not 0 < target <= 1:
        raise SpecError(f"a target is a share of the source's MACs in (0, 1], got {target}")


def check_target(dyn: DynamicModel, target: float, cost: Cost | None = None) -> None:
    """Raises SpecError where no route is as cheap as `target`, a share of the source's cost."""
    check_share(target)
    cost = ModelMacs(dyn) if cost is None else cost
    least, _ = reachable_shares(dyn, cost)
    if target < least:
        asked, smallest = amount(target * cost.source), amount(least * cost.source)
        raise SpecError(
            f"the target of {target:.1%} of the source's {cost.unit} ({asked}) is below the "
            f"smallest route's {least:.1%} ({smallest}, decision nets included)",
            fix="ask for more, or offer narrower columns",
        )


def amount(value: float) -> str:
    """A number in words' place: whole from a thousand on, else four digits."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


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


@contextmanager
def restoring(tensors: Iterable[Tensor], *, always: bool = True) -> Generator[None]:
    """Parameters and buffers as before afterwards, always or if something fails."""
    before = [(tensor, tensor.detach().clone()) for tensor in tensors]
    done = False
    try:
        yield
        done = True
    finally:
        if always or not done:
            with torch.no_grad():
                for tensor, value in before:
                    tensor.copy_(value)
