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
from dyncompile.deploy.specialize import specialize
from dyncompile.errors import SpecError
from dyncompile.latency.axes import axes_of
from dyncompile.latency.clocks import Clock, clock_of
from dyncompile.latency.inputs import device_of, given_inputs, random_inputs, tensors_by_name
from dyncompile.latency.store import Key, cache_folder, device_name, read, write
from dyncompile.latency.terms import Term, TimedTerm, combinations, terms_of
from dyncompile.latency.timing import Asked, Measured, Network, measure
from dyncompile.policies import Forced, Full
from dyncompile.program import Choice, Route
from dyncompile.runtime.model import DynamicModel

_ROUNDS = 15


@dataclass(frozen=True)
class Fit:
    """From the sum of its operators' times to the time of a whole call, which is more, or sometimes less.

    What a call takes on top is the same on all routes; where marks alone cost more than that, all is scaled.
    """

    scale: float
    offset: float

    @classmethod
    def of(cls, whole: float, operators: float) -> Fit:
        """One that gives `whole` seconds for `operators` seconds."""
        above = whole - operators
        return cls(1.0, above) if above >= 0 else cls(whole / operators, 0.0)


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
        full = {name: torch.tensor([choice.full]) for name, choice in self.choices.items()}
        self.path_fit = Fit.of(measured.calls["forced"], self._operators(full, deciding=False))
        self.spent_fit = Fit.of(measured.calls["asked"], self._operators(full, deciding=True))

    def _operators(self, route: Route, *, deciding: bool) -> float:
        return float(self.sum(self.terms, route, deciding=deciding)[0])

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

    def _per_row(self, fit: Fit, seconds: Tensor) -> Tensor:
        return (fit.scale * seconds + fit.offset) / max(self.rows, 1)


class Latency:
    """``Latency(dyn, batch=32)(route) -> [B]``: seconds per sample on this device, with gradients.

    Every operator is timed in place, at the sizes that its choices give it (`latency.timing`), the dynamic
    model's own among them: narrowing, gains. Their sum is fitted to whole calls at full capacity. Exact, up
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
        InputError: `inputs` do not fit the model.
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
        here = device_of(dyn) if device is None else torch.device(device)
        if here.type != device_of(dyn).type:
            dyn = copy.deepcopy(dyn).to(here)
        flat = random_inputs(dyn.program, batch, here) if inputs is None else given_inputs(dyn, inputs)
        clock = clock_of(here) if clock is None else clock
        self.batch = dyn.program.signature.rows(flat)
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
    threads, deployed = torch.get_num_threads(), type(dyn).__name__
    fingerprint = f"{deployed} {dyn.program.fingerprint}"
    return Key(fingerprint, inputs, device_name(device), threads, torch.__version__, clock.name)


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
            full: Route = {} if dyn.by_size is None else _at_size(dyn.by_size.choice, column)
            calls: dict[str, Callable[[], object]] = {
                "source": lambda: static(**named),
                "forced": partial(dyn.execute, flat, network.rows, Forced(full), "auto"),
                "asked": partial(dyn.execute, flat, network.rows, Asked(full), "auto"),
            }
            found.append(measure(network, calls, clock, rounds))
    return found


def _at_size(choice: Choice, column: int) -> Route:
    """A size of the input, everything else at full."""
    return {choice.name: torch.tensor([choice.row(column)])}


@contextmanager
def _evaluating(dyn: DynamicModel) -> Generator[None]:
    training = dyn.training
    dyn.eval()
    try:
        yield
    finally:
        dyn.train(training)


def full_route(choices: Mapping[str, Choice]) -> Route:
    """One row at full capacity."""
    return {name: Full().decide(choice, 1, None) for name, choice in choices.items()}
