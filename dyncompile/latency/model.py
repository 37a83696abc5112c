"""The cost model `Latency`: seconds that a sample takes on this device, by its row of a route."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dyncompile.analysis.skips import Condition
from dyncompile.cost import by_column, switched_on
from dyncompile.deploy.deployed import Deployed
from dyncompile.deploy.specialize import specialize
from dyncompile.errors import InputError, SpecError
from dyncompile.latency.axes import axes_of
from dyncompile.latency.clocks import Clock, clock_of
from dyncompile.latency.inputs import device_of, given_inputs, random_inputs, tensors_by_name
from dyncompile.latency.store import Key, cache_folder, device_name, read, write
from dyncompile.latency.terms import Term, TimedTerm, combinations, terms_of
from dyncompile.latency.timing import Asked, Measured, Network, measure
from dyncompile.policies import Forced, Full, Smallest
from dyncompile.program import Choice, Route
from dyncompile.runtime.model import DynamicModel, as_dynamic

_ROUNDS = 15
_APART = 1.25
"""Ratio of two sums of operators' times from which on a slope is taken from them."""
_STEEP = 1.25
"""Largest slope of a fit, and the inverse of the least."""


@dataclass(frozen=True)
class Fit:
    """From the sum of its operators' times to the time of a whole call: ``scale * sum + offset``."""

    scale: float
    offset: float

    @classmethod
    def of(cls, calls: tuple[float, float], operators: tuple[float, float]) -> Fit:
        """Through two whole calls, at full capacity and at the cheapest, and the sums of their operators.

        Where these are too close to each other, or too far from a slope of 1 to be anything but noise, the
        slope is bounded, and only the call at full capacity is met. No call takes less than nothing on top.
        """
        (most, least), (heavy, light) = calls, operators
        slope = (most - least) / (heavy - light) if heavy > _APART * light else 1.0
        scale = min(max(slope, 1 / _STEEP), _STEEP)
        offset = most - scale * heavy
        return cls(scale, offset) if offset >= 0 else cls(most / heavy, 0.0)


@dataclass(frozen=True)
class Split:
    """Seconds of a call on one route: in contractions, in other operators, and besides operators."""

    contractions: float
    others: float
    besides: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.contractions + self.others + self.besides


class NetworkTimes:
    """Times of one graph: its terms, and what a call takes besides them."""

    def __init__(self, network: Network, measured: Measured) -> None:
        self.choices: Mapping[str, Choice] = network.program.choices
        self.rows = network.rows
        self.terms = [
            TimedTerm(term, tuple(network.axes[name] for name in term.axes), seconds)
            for term, seconds in zip(network.terms, measured.terms, strict=True)
        ]
        self.calls = measured.calls
        self.path_fit = self._fit("forced", deciding=False)
        self.spent_fit = self._fit("asked", deciding=True)

    def _fit(self, name: str, *, deciding: bool) -> Fit:
        full, least = (
            float(self.sum(self.terms, ends(self.choices, policy), deciding=deciding)[0])
            for policy in (Full(), Smallest())
        )
        return Fit.of((self.calls[f"{name}, full"], self.calls[f"{name}, smallest"]), (full, least))

    def sum(self, terms: Sequence[TimedTerm], route: Route, *, deciding: bool) -> Tensor:
        """Seconds per call of some terms, all rows being alike: float64 [B]."""
        on, none = switched_on(self.choices, route)

        def when(term: Term) -> tuple[Condition, ...]:
            return term.needed if deciding else term.runs

        taken = [one for one in terms if deciding or one.term.on_path]
        return sum((one.value(on, when(one.term), none) for one in taken), none)

    def path(self, route: Route) -> Tensor:
        """Seconds per row on a route that no decision net is asked for."""
        return self._per_row(self.path_fit, self.sum(self.terms, route, deciding=False))

    def spent(self, route: Route) -> Tensor:
        """Seconds per row on a learned route."""
        return self._per_row(self.spent_fit, self.sum(self.terms, route, deciding=True))

    def contractions(self, route: Route) -> Tensor:
        """Seconds per row in contractions on the path."""
        mine = [one for one in self.terms if one.term.multiplies]
        return self.path_fit.scale * self.sum(mine, route, deciding=False) / max(self.rows, 1)

    def operators(self, route: Route) -> Tensor:
        """Seconds per row in all operators on the path."""
        return self.path_fit.scale * self.sum(self.terms, route, deciding=False) / max(self.rows, 1)

    def _per_row(self, fit: Fit, seconds: Tensor) -> Tensor:
        return (fit.scale * seconds + fit.offset) / max(self.rows, 1)


class Latency:
    """``Latency(dyn, batch=32)(route) -> [B]``: seconds per sample on this device, with gradients.

    Every operator is timed in place, at the sizes that its choices give it (`latency.timing`), the dynamic
    model's own among them: narrowing, gains. Their sum is fitted to whole calls, at full capacity
    and at the cheapest. Exact, up
    to noise, on routes that were timed; elsewhere as good as the assumption that an operator takes as long as
    its own sizes say. `python -m benchmarks latency` shows how far that holds.

    A row costs what it would in a batch of `batch` rows that all go its way: parting rows and putting them
    together again is not in it, nor is what small groups lose. Give a deployed model to get its times; the
    source is then the full route of that, with norms folded.

    Args:
        dyn: any dynamic model. Its evaluation graph is timed, without gradients; it stays as it is.
        device: where; None is where the model lies. Elsewhere a copy of it is timed.
        batch: rows per call.
        inputs: a batch to time with, as `dynamize` takes example inputs; then `batch` is its own. By default
            random numbers, and ones for integers.
        rounds: how often everything is timed; medians are kept.
        clock: by default wall time, on CUDA that of events.
        cache: folder of measurements; None is `latency.store.cache_folder()`, which the environment variable
            ``DYNCOMPILE_CACHE`` can name. A damaged entry is measured again.
        fresh: measure even if there is an entry, and replace it.

    Raises:
        SpecError: rounds or batch below 1.
        InputError: `inputs` do not fit the model, or hold no sample.
    """

    unit = "seconds"

    def __init__(
        self,
        dyn: DynamicModel,
        *,
        device: torch.device | str | None = None,
        batch: int = 1,
        inputs: Any = None,
        rounds: int = _ROUNDS,
        clock: Clock | None = None,
        cache: str | PathLike[str] | None = None,
        fresh: bool = False,
    ) -> None:
        if rounds < 1 or batch < 1:
            raise SpecError(f"rounds and batch are at least 1, got {rounds} and {batch}")
        dyn = as_dynamic(dyn)
        here = device_of(dyn) if device is None else torch.device(device)
        if here.type != device_of(dyn).type:
            dyn = copy.deepcopy(dyn).to(here)
        flat = random_inputs(dyn.program, batch, here) if inputs is None else given_inputs(dyn, inputs)
        clock = clock_of(here) if clock is None else clock
        self.batch = dyn.program.signature.rows(flat)
        if not self.batch:
            raise InputError("there is no sample to time with", fix="give a batch of at least one")
        self.key = _key(dyn, flat, here, clock)
        networks = _networks(dyn, flat)
        folder = cache_folder() if cache is None else Path(cache)
        shapes = [[len(combinations(term, one.axes)) for term in one.terms] for one in networks]
        measured = None if fresh else read(folder, self.key, shapes)
        if measured is None:
            measured = _measured(dyn, networks, flat, clock, rounds)
            write(folder, self.key, measured)
        self._choice = None if dyn.by_size is None else dyn.by_size.choice
        self.networks = [NetworkTimes(*pair) for pair in zip(networks, measured, strict=True)]

    def __call__(self, route: Route) -> Tensor:
        """Seconds of each row's path: float64 [B]. Raises RouteError where the route lacks a choice."""
        return self._priced([network.path for network in self.networks], route)

    def spent(self, route: Route) -> Tensor:
        """Seconds of each row of a learned route, decision nets included: float64 [B]."""
        return self._priced([network.spent for network in self.networks], route)

    def _priced(self, costs: Sequence[Callable[[Route], Tensor]], route: Route) -> Tensor:
        return costs[0](route) if self._choice is None else by_column(self._choice, costs, route)

    def split(self, route: Route) -> Split:
        """Where the time of a route's first row goes: seconds per sample on its path."""
        total = float(self(route)[0])
        inside = float(self._priced([network.operators for network in self.networks], route)[0])
        own = float(self._priced([network.contractions for network in self.networks], route)[0])
        return Split(own, inside - own, total - inside)

    def mean_contraction(self, route: Route) -> float:
        """Mean seconds of a call of a contraction on the path of a route's first row."""
        terms = [one.term for one in self.networks[0].terms if one.term.multiplies and one.term.on_path]
        return self.split(route).contractions * self.batch / max(sum(len(one.nodes) for one in terms), 1)

    @property
    def source(self) -> float:
        """Seconds per sample of the source, as a static graph."""
        return self.networks[0].calls["source"] / self.batch

    def __repr__(self) -> str:
        return (
            f"Latency(batch={self.batch}, device={self.key.device!r}, threads={self.key.threads}, "
            f"clock={self.key.clock!r})"
        )


def _key(dyn: DynamicModel, flat: Sequence[Any], device: torch.device, clock: Clock) -> Key:
    inputs = tuple(f"{list(one.shape)} {one.dtype}" if isinstance(one, Tensor) else repr(one) for one in flat)
    fingerprint = f"{_kind(dyn)} {dyn.program.fingerprint}"
    threads = torch.get_num_threads()
    return Key(fingerprint, inputs, device_name(device), threads, torch.__version__, clock.name)


def _kind(dyn: DynamicModel) -> str:
    """What runs the graphs, without what only matters to rows that go different ways."""
    if not isinstance(dyn, Deployed):
        return type(dyn).__name__
    one = dyn.settings
    return f"{type(dyn).__name__} {one.backend} {one.memory} {one.max_graphs}"


def _networks(dyn: DynamicModel, flat: Sequence[Any]) -> list[Network]:
    """One per size of the input that a choice decides, by column; else the only one."""
    if dyn.by_size is None:
        return [_network(dyn, flat)]
    sized = dyn.by_size
    return [_network(model, sized.resized(column, flat)) for column, model in enumerate(sized.models)]


def _network(dyn: DynamicModel, flat: Sequence[Any]) -> Network:
    rows = dyn.program.signature.rows(flat)
    return Network(dyn.program, terms_of(dyn.program, dyn.facts), axes_of(dyn.program), flat, rows)


def _measured(
    dyn: DynamicModel, networks: Sequence[Network], flat: Sequence[Any], clock: Clock, rounds: int
) -> list[Measured]:
    with _evaluating(dyn):
        static, named = specialize(dyn, {}), tensors_by_name(dyn.program.signature, flat)
        found: list[Measured] = []
        for column, network in enumerate(networks):
            calls: dict[str, Callable[[], object]] = {"source": lambda: static(**named)}
            for label, policy in (("full", Full()), ("smallest", Smallest())):
                route = {**ends(dyn.choices, policy), **_at_size(dyn, column)}
                for name, one in (("forced", Forced(route)), ("asked", Asked(route))):
                    calls[f"{name}, {label}"] = partial(dyn.execute, flat, network.rows, one, "auto")
            found.append(measure(network, calls, clock, rounds))
    return found


def _at_size(dyn: DynamicModel, column: int) -> Route:
    """The size of the input that a network is for, where a choice decides it."""
    if dyn.by_size is None:
        return {}
    choice = dyn.by_size.choice
    return {choice.name: torch.tensor([choice.row(column)])}


@contextmanager
def _evaluating(dyn: DynamicModel) -> Generator[None]:
    training = dyn.training
    dyn.eval()
    try:
        yield
    finally:
        dyn.train(training)


def ends(choices: Mapping[str, Choice], policy: Full | Smallest) -> Route:
    """One row at full capacity, or of everything at its cheapest."""
    return {name: policy.decide(choice, 1, None) for name, choice in choices.items()}
