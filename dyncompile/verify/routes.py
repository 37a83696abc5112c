"""Any route: specialized, counted, mixed with others."""

from __future__ import annotations

from functools import partial

import torch

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
    difference,
    row_of,
    scale,
)
from dyncompile.verify.report import Check
from dyncompile.verify.subject import Subject, tensor_arguments


def check_specialize(subject: Subject, seed: int) -> Check:
    """A specialized network computes what the dynamic one does on that route."""
    subject.dyn.eval()
    args, kwargs = subject.rows(2)
    worst = relative = 0.0
    for route in subject.routes:
        static = specialize(subject.dyn, route)
        with torch.no_grad():
            expected = subject.dyn.run(*args, policy=Forced(route), **kwargs)[0]
            actual = static(*tensor_arguments(subject, args, kwargs))
        worst = max(worst, difference(expected, actual))
        relative = max(relative, difference(expected, actual) / scale(expected))
    return Check("specialize", relative <= RELATIVE_TOLERANCE, worst, f"{len(subject.routes)} routes")


def check_cost(subject: Subject, seed: int) -> Check:
    """MACs of a route are those counted on its static network (FlopCounterMode / 2, attention included).

    Dims that nothing reads cost at full capacity, as in the source; static networks do without them.
    """
    subject.dyn.eval()
    args, kwargs = subject.rows(1)
    tensors = tensor_arguments(subject, args, kwargs)
    full = plan_route(Full(), subject.dyn.choices, 1)
    pairs = [(float(subject.dyn.macs(full)[0]), count_macs(lambda: subject.reference(*args, **kwargs)))]
    for route in subject.routes:
        static = specialize(subject.dyn, route)
        pairs.append((_alive_macs(subject.dyn, route), count_macs(partial(static, *tensors))))
    worst = max(abs(ours - counted) for ours, counted in pairs)
    unmodeled = sorted(set(subject.dyn.facts.macs.unmodeled.values()))
    note = f"; not modeled: {', '.join(unmodeled)}" if unmodeled else ""
    return Check("cost", worst == 0 or bool(unmodeled), worst, f"source {pairs[0][1]:.4g} MACs{note}")


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
    subject.dyn.eval()
    size = 4
    args, kwargs = subject.rows(size)
    route = plan_route(Sampled(seed, per_sample=True), subject.dyn.choices, size)
    with torch.no_grad():
        together = subject.dyn.run(*args, policy=Forced(route), **kwargs)[0]
        worst = 0.0
        for row in range(size):
            one = {name: rows[row : row + 1] for name, rows in route.items()}
            alone = subject.dyn.run(*args, policy=Forced(one), **kwargs)[0]
            worst = max(worst, difference(row_of(alone, row, size), row_of(together, row, size)))
    relative = worst / scale(together)
    return Check("mixed routes", relative <= RELATIVE_TOLERANCE, worst, f"{size} rows, order kept")


def check_masked(subject: Subject, seed: int) -> Check:
    """Masked execution, through which decisions are trained, gives every row what narrow weights give it."""
    dyn = subject.dyn.eval()
    obstacles = dyn.unmaskable
    if not dyn.choices or obstacles:
        return Check("masked execution", not dyn.gated, detail=f"not offered: {obstacles or 'no choice'}")
    args, kwargs = subject.rows(4)
    policy = Forced(plan_route(Sampled(seed, per_sample=True), dyn.choices, 4))
    with torch.no_grad():
        narrowed = dyn.record(*args, policy=policy, execution="sparse", **kwargs).output
        masked = dyn.record(*args, policy=policy, execution="dense", **kwargs).output
    worst = difference(narrowed, masked)
    return Check("masked execution", worst / scale(narrowed) <= MASKED_TOLERANCE, worst, "mixed routes")
