"""A dynamic model beside its source: everything that it can do, timed in turns with the source network.

Every row is a series of pairs (it, the source) on the same inputs; see `latency.ratios`. The source is timed
against itself, too: how far that is from 1, and how wide, says what the machine's noise is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dyncompile.deploy.specialize import specialize
from dyncompile.latency.inputs import tensors_by_name
from dyncompile.latency.ratios import Comparison, compare
from dyncompile.policies import Forced, Full, Learned
from dyncompile.program import Route
from dyncompile.runtime.model import DynamicModel

Reference = Callable[[Sequence[Any]], object]
"""The source network on flat inputs."""

Compare = Callable[[Callable[[], object], Callable[[], object], int], Comparison]
"""``compare(run, reference, pairs)``."""


@dataclass(frozen=True)
class Timing:
    """One thing that was timed against the source.

    Attributes:
        name: what it is.
        group: "source", "dynamic" (the model on a forced route), "static" (that route, specialized) or
            "learned" (the model, decided by its nets).
        share: its share of the source's MACs, decision nets included where they are asked.
        latency: its time over the source's.
    """

    name: str
    group: str
    share: float
    latency: Comparison


class _Turns:
    """The batches in turn, for a function of one batch: every call takes the next, and starts over."""

    def __init__(self, run: Callable[[Sequence[Any]], object], batches: Sequence[Sequence[Any]]) -> None:
        self._run, self._batches, self._at = run, batches, 0

    def __call__(self) -> object:
        flat = self._batches[self._at % len(self._batches)]
        self._at += 1
        return self._run(flat)


@torch.no_grad()
def bench(
    dyn: DynamicModel,
    routes: Mapping[str, Route],
    batches: Sequence[Sequence[Any]],
    *,
    reference: Reference | None = None,
    learned: bool = False,
    pairs: int = 20,
    watch: Callable[[str, int, int], object] = lambda stage, done, total: None,
    timer: Compare = compare,
) -> list[Timing]:
    """Time the source, the model at full capacity, all routes, and what decision nets decide.

    Args:
        dyn: in evaluation mode.
        routes: of one row each, by label; each is timed as the dynamic model runs it and specialized.
        batches: flat inputs; pairs take them in turn.
        reference: the source; None is the full route as a static graph.
        learned: also let decision nets decide, which only says something on inputs that mean something.
        pairs: measurements per row.
        watch: is told the progress.
        timer: compares two calls.
    """
    source = static_network(dyn, {}) if reference is None else reference
    runs = _runs(dyn, routes, source)
    if learned and dyn.gated:
        runs["learned routes"] = "learned", _learned_share(dyn, batches), _dynamic(dyn, Learned())
    rows: list[Timing] = []
    for name, (group, share, run) in runs.items():
        latency = timer(_Turns(run, batches), _Turns(source, batches), pairs)
        rows.append(Timing(name, group, share, latency))
        watch("timing", len(rows), len(runs))
    return rows


_Run = tuple[str, float, Reference]


def _runs(dyn: DynamicModel, routes: Mapping[str, Route], source: Reference) -> dict[str, _Run]:
    """Name -> (group, share of MACs, function of a batch)."""
    found: dict[str, _Run] = {
        "source": ("source", 1.0, source),
        "dynamic at full": ("dynamic", 1.0, _dynamic(dyn, Full())),
    }
    for label, route in routes.items():
        share = float(dyn.macs(route)[0]) / dyn.static_macs
        found[f"dynamic at {label}"] = "dynamic", share, _dynamic(dyn, Forced(route))
        found[f"static {label}"] = "static", share, static_network(dyn, route)
    return found


def _dynamic(dyn: DynamicModel, policy: Full | Forced | Learned) -> Reference:
    signature = dyn.program.signature
    return lambda flat: dyn.run(policy=policy, **signature.named(flat))


def static_network(dyn: DynamicModel, route: Route) -> Reference:
    """A route as a static graph, on flat inputs."""
    static = specialize(dyn, route)
    return lambda flat: static(**tensors_by_name(dyn.program.signature, flat))


def _learned_share(dyn: DynamicModel, batches: Iterable[Sequence[Any]]) -> float:
    """Mean share of the source's MACs that learned routes of all batches spend."""
    spent = torch.cat([dyn.spent(_learned_route(dyn, flat)).cpu() for flat in batches])
    return float(spent.mean()) / dyn.static_macs


def _learned_route(dyn: DynamicModel, flat: Sequence[Any]) -> Route:
    return dyn.run(policy=Learned(), **dyn.program.signature.named(flat))[1]
