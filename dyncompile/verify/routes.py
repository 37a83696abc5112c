"""Any route: specialized, counted, mixed with others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dyncompile.cost import Macs
from dyncompile.deploy import specialize
from dyncompile.policies import Forced, Full, Sampled
from dyncompile.program import Route
from dyncompile.runtime.model import DynamicModel
from dyncompile.runtime.steering import plan_route
from dyncompile.verify.compare import (
    MASKED_TOLERANCE,
    RELATIVE_TOLERANCE,
    count_macs,
    row_of,
)
from dyncompile.verify.report import Check
from dyncompile.verify.rounding import check_alike
from dyncompile.verify.subject import Subject, tensor_arguments


def check_specialize(subject: Subject, seed: int) -> Check:
    """A specialized network computes what the dynamic one does on that route."""
    detail = f"{len(subject.routes)} routes"
    return check_alike("specialize", subject, _specialized, RELATIVE_TOLERANCE, detail)


@torch.no_grad()
def _specialized(subject: Subject) -> tuple[list[Any], list[Any]]:
    """Per route what the dynamic model gives, and what the static one does."""
    dyn = subject.dyn.eval()
    args, kwargs = subject.rows(2)
    tensors = tensor_arguments(subject, args, kwargs)
    expected = [dyn.run(*args, policy=Forced(route), **kwargs)[0] for route in subject.routes]
    return expected, [specialize(dyn, route)(*tensors) for route in subject.routes]


def check_cost(subject: Subject, seed: int) -> Check:
    """MACs of a route are those counted on its static network (FlopCounterMode / 2, attention included).

    Dims that nothing reads cost at full capacity, as in the source; static networks do without them.
    """
    subject.dyn.eval()
    args, kwargs = subject.rows(1)
    tensors = tensor_arguments(subject, args, kwargs)
    full = plan_route(Full(), subject.dyn.choices, 1)
    pairs = [(float(subject.dyn.macs(full)[0]), _counted(partial(subject.reference, *args, **kwargs)))]
    for route in subject.routes:
        static = specialize(subject.dyn, route)
        pairs.append((_alive_macs(subject.dyn, route), _counted(partial(static, *tensors))))
    worst = max(abs(ours - counted) for ours, counted in pairs)
    unmodeled = sorted(set(subject.dyn.facts.macs.unmodeled.values()))
    note = f"; not modeled: {', '.join(unmodeled)}" if unmodeled else ""
    return Check("cost", worst == 0 or bool(unmodeled), worst, f"source {pairs[0][1]:.4g} MACs{note}")


def _counted(run: Callable[[], Any]) -> float:
    return count_macs(run, vectors=True)


def _alive_macs(dyn: DynamicModel, route: Route) -> float:
    """MACs of one route without the dims that nothing reads."""
    model = dyn if dyn.by_size is None else dyn.by_size.model_of(route)
    facts = model.facts
    alive = {
        node: {m: n for m, n in polynomial.items() if facts.dead.isdisjoint(e.name for e in m)}
        for node, polynomial in facts.macs.nodes.items()
    }
    return float(Macs(model.program, alive)({name: route[name] for name in model.choices})[0])


def check_sparse(subject: Subject, seed: int) -> Check:
    """A batch of mixed routes gives every row what it gets alone, in order."""
    size = 4
    ways = partial(_alone_and_together, seed=seed, size=size)
    return check_alike("mixed routes", subject, ways, RELATIVE_TOLERANCE, f"{size} rows, order kept")


@torch.no_grad()
def _alone_and_together(subject: Subject, seed: int, size: int) -> tuple[list[Any], list[Any]]:
    """All rows' own outputs, and all rows of the batch's."""
    dyn = subject.dyn.eval()
    args, kwargs = subject.rows(size)
    route = plan_route(Sampled(seed, per_sample=True), dyn.choices, size)
    together = dyn.run(*args, policy=Forced(route), **kwargs)[0]
    alone: list[list[Tensor]] = []
    for row in range(size):
        one = {name: rows[row : row + 1] for name, rows in route.items()}
        alone.append(row_of(dyn.run(*args, policy=Forced(one), **kwargs)[0], row, size))
    return [alone], [[row_of(together, row, size) for row in range(size)]]


def check_masked(subject: Subject, seed: int) -> Check:
    """Masked execution, through which decisions are trained, gives every row what narrow weights give it."""
    dyn = subject.dyn
    obstacles = dyn.unmaskable
    if not dyn.choices or obstacles:
        return Check("masked execution", not dyn.gated, detail=f"not offered: {obstacles or 'no choice'}")
    ways = partial(_narrowed_and_masked, seed=seed)
    return check_alike("masked execution", subject, ways, MASKED_TOLERANCE, "mixed routes")


@torch.no_grad()
def _narrowed_and_masked(subject: Subject, seed: int) -> tuple[list[Any], list[Any]]:
    dyn = subject.dyn.eval()
    args, kwargs = subject.rows(4)
    policy = Forced(plan_route(Sampled(seed, per_sample=True), dyn.choices, 4))
    narrowed, masked = (
        dyn.record(*args, policy=policy, execution=execution, **kwargs).output
        for execution in ("sparse", "dense")
    )
    return [narrowed], [masked]
