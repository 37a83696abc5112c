"""Timing a dynamic model node by node, in place: caches are as warm, and memory as used, as in a real call.

Every round runs all routes of the design once, and whole calls of the source's static graph and of the
dynamic model among them, so that a change of the machine's load meets all alike. The median over rounds is
kept. All rows of a timed batch take one route, and all branches run.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from dyncompile.latency.axes import Axis
from dyncompile.latency.clocks import Clock
from dyncompile.latency.design import Anchors, routes_to_time
from dyncompile.latency.terms import Combination, Term, combinations
from dyncompile.policies import Forced
from dyncompile.program import Choice, Program, Route
from dyncompile.runtime.steering import Group, decision_of

_WARM_UP = 2


@dataclass(frozen=True)
class Asked:
    """A forced route for which decision nets run all the same: what a learned call costs."""

    reads_gates: ClassVar[bool] = True

    route: Route

    def decide(self, choice: Choice, rows: int, logits: Tensor | None) -> Tensor:
        """The route's row for every row."""
        return Forced(self.route).decide(choice, rows, logits)


class _Stopwatch(fx.Interpreter):
    """Runs a graph and marks the start and the end of every operator."""

    def __init__(self, program: Program, clock: Clock) -> None:
        super().__init__(program.state, garbage_collect_values=True, graph=program.graphs["eval"])
        self._clock = clock
        self.spans: list[tuple[str, Any, Any]] = []

    def run_node(self, n: fx.Node) -> Any:
        """See `fx.Interpreter`; what lies between operators is not timed."""
        if n.op != "call_function":
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        assert callable(n.target)
        start = self._clock.mark()
        value = n.target(*args, **kwargs)
        self.spans.append((n.name, start, self._clock.mark()))
        return value


@dataclass(frozen=True)
class Network:
    """What is timed of one graph: a program, its terms, and flat inputs of `rows` rows."""

    program: Program
    terms: Sequence[Term]
    axes: Mapping[str, Axis]
    flat: Sequence[Any]
    rows: int

    def route(self, anchors: Anchors) -> dict[str, Tensor]:
        """Rows [1, width] of every choice."""
        chosen = {name: self.axes[name].rows[anchor] for name, anchor in anchors.items()}
        return {
            name: torch.tensor([chosen.get(name, choice.full)])
            for name, choice in self.program.choices.items()
        }

    def _group(self, anchors: Anchors) -> Group:
        rows = self.route(anchors).items()
        decisions = {name: decision_of(row.expand(self.rows, -1)) for name, row in rows}
        return Group(torch.arange(self.rows), decisions)

    def run(self, anchors: Anchors, clock: Clock) -> list[float]:
        """Seconds of each term on one route."""
        watch = _Stopwatch(self.program, clock)
        watch.run(self._group(anchors), *self.flat, enable_io_processing=False)
        by_node = {name: clock.seconds(start, end) for name, start, end in watch.spans}
        return [sum(by_node[name] for name in term.nodes) for term in self.terms]


def time_calls(calls: Mapping[str, Callable[[], object]], clock: Clock) -> dict[str, float]:
    """Seconds of whole calls, one run each."""
    found: dict[str, float] = {}
    for name, call in calls.items():
        start = clock.mark()
        call()
        found[name] = clock.seconds(start, clock.mark())
    return found


@dataclass(frozen=True)
class Measured:
    """Medians, in seconds per call: of every term at each of its combinations, and of whole calls by name."""

    terms: tuple[tuple[float, ...], ...]
    calls: Mapping[str, float]


def measure(
    network: Network, calls: Mapping[str, Callable[[], object]], clock: Clock, rounds: int
) -> Measured:
    """Time all terms and calls, in turns, without gradients."""
    design = routes_to_time(network.terms, network.axes)
    terms: list[defaultdict[Combination, list[float]]] = [defaultdict(list) for _ in network.terms]
    whole: defaultdict[str, list[float]] = defaultdict(list)
    with torch.inference_mode():
        for at in range(-_WARM_UP, rounds):
            found = [(route, network.run(route, clock)) for route in (design if at % 2 else design[::-1])]
            seconds = time_calls(calls, clock)
            if at < 0:
                continue
            for route, times in found:
                for term, own, one in zip(network.terms, terms, times, strict=True):
                    own[tuple(route[name] for name in term.axes)].append(one)
            for name, one in seconds.items():
                whole[name].append(one)
    return Measured(
        tuple(
            tuple(statistics.median(own[one]) for one in combinations(term, network.axes))
            for term, own in zip(network.terms, terms, strict=True)
        ),
        {name: statistics.median(times) for name, times in whole.items()},
    )
