"""What a dynamic model consists of, and what it costs as a function of the route."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, fx

from dyncompile.analysis.dims.call import Type
from dyncompile.analysis.facts import Facts, analyze
from dyncompile.cost import ByColumn, Macs, parameter_costs
from dyncompile.plan import Plan
from dyncompile.policies import Full, route_of
from dyncompile.program import Choice, Domain, Mode, Program, Route
from dyncompile.runtime import ops
from dyncompile.runtime.hosting import Hosting
from dyncompile.state import STATE_PREFIX
from dyncompile.torchlib import untraced

if TYPE_CHECKING:
    from dyncompile.runtime.sizes import BySize


class Described(Hosting):
    """A module that runs a program.

    Attributes:
        by_size: models per size, where a choice decides on the size of an input.
    """

    program: Program
    by_size: BySize | None

    @property
    def choices(self) -> Mapping[str, Choice]:
        """Decision points by name."""
        return self.program.choices

    @cached_property
    def gated(self) -> tuple[str, ...]:
        """Choices that have a decision net."""
        graphs = [self.program.graphs["eval"]]
        if self.program.variants is not None:
            graphs.insert(0, self.program.variants.heads["eval"])
        nodes = [node for graph in graphs for node in graph.nodes if node.target is ops.decide]
        return tuple(str(node.args[1]) for node in nodes if len(node.args) > 2)

    @cached_property
    def exits(self) -> tuple[str, ...]:
        """Choices that end a row early, in order."""
        return tuple(name for name, choice in self.choices.items() if choice.domain is Domain.EXIT)

    @property
    def history(self) -> tuple[str, ...]:
        """Specifications of the passes applied, in order."""
        return self.program.history

    @property
    def plans(self) -> tuple[Plan, ...]:
        """What each pass decided: sites, rejections with reasons."""
        return self.program.plans

    @cached_property
    @untraced
    def facts(self) -> Facts:
        """What is elastic, what stays static and why, regions and costs."""
        return analyze(self.program) if self.by_size is None else self.by_size.native.facts

    @cached_property
    def path_cost(self) -> Macs | ByColumn:
        """``path_cost(route)``: MACs of the path."""
        if self.by_size is not None:
            costs = [model.path_cost for model in self.by_size.models]
            return ByColumn(self.by_size.choice, costs)
        return Macs(self.program, self.facts.macs.nodes)

    @cached_property
    def output_types(self) -> dict[Mode, list[Type]]:
        """Types of the flat outputs; None for what is no tensor."""
        found: dict[Mode, list[Type]] = {}
        for mode, graph in self.program.graphs.items():
            types = self.facts.dims.graphs[mode].types
            flat = next(node for node in graph.nodes if node.op == "output").args[0]
            values = cast("Sequence[Any]", flat)
            found[mode] = [types.get(v.name) if isinstance(v, fx.Node) else None for v in values]
        return found

    def route(self, columns: Mapping[str, int] | int, rows: int = 1) -> Route:
        """A one-hot route from column numbers: one for all choices, or by choice name (others at full)."""
        return route_of(self.choices, columns, rows)

    def macs(self, route: Route) -> Tensor:
        """MACs of the path of each row of a route: float64 [B]; decision nets are not in it."""
        return self.path_cost(route)

    def active_parameters(self, route: Route) -> Tensor:
        """Parameter elements that the path of each row of a route reads: float64 [B].

        Those of a branch count where it runs, of narrowed weights what is left. Decision nets are not in it.
        """
        return self._parameter_cost(route)

    @cached_property
    def _parameter_cost(self) -> Macs:
        return Macs(self.program, parameter_costs(self.program.graphs["eval"], self.facts))

    @cached_property
    def stored_parameters(self) -> int:
        """Parameter elements of the whole model: the source's, alternatives', sizes', decision nets'."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def source_parameters(self) -> int:
        """Parameter elements of the source alone."""
        own = (p for name, p in self.named_parameters() if not name.startswith(f"{STATE_PREFIX}."))
        return sum(parameter.numel() for parameter in own)

    @property
    def priced(self) -> frozenset[str]:
        """Choices that MACs depend on."""
        return self.path_cost.choices

    @cached_property
    def static_macs(self) -> float:
        """MACs of the source per sample."""
        full = {name: Full().decide(choice, 1, None) for name, choice in self.choices.items()}
        return float(self.macs(full)[0])

    @cached_property
    def decision_macs(self) -> float:
        """MACs per sample that the decision nets cost on top of the path, at full size.

        With exits the early predictions are among them: a sample that goes on has needed them to decide.
        """
        full = {name: Full().decide(choice, 1, None) for name, choice in self.choices.items()}
        if self.exits:
            own = float((self._work(full) - self.macs(full))[0])
        else:
            own = float(Macs(self.program, self.facts.macs.decisions)(full)[0])
        return own if self.by_size is None else own + self.by_size.decision_macs

    @cached_property
    def _work(self) -> Macs:
        """All that rows need: their paths, and what decides on them."""
        costs = self.facts.macs
        return Macs(self.program, {**costs.decisions, **costs.nodes}, deciding=True)

    def spent(self, route: Route) -> Tensor:
        """MACs of each row of a learned route, decisions included: float64 [B].

        This is the path and `decision_macs`. A row that leaves early has spent its path (its prediction is
        what was decided on) and no decision that comes later.
        """
        if self.by_size is not None:
            return self.by_size.spent(route)
        return self._work(route) if self.exits else self.macs(route) + self.decision_macs
