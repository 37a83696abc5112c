"""The dynamic model: a plain trainable `nn.Module` around a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from dyncompile.analysis.dims.call import Type
from dyncompile.analysis.facts import Facts, analyze
from dyncompile.cost import ByColumn, Macs, parameter_costs
from dyncompile.errors import RouteError
from dyncompile.exits import without_exits
from dyncompile.gate import without_gates
from dyncompile.hub import Pretrained
from dyncompile.plan import Plan
from dyncompile.policies import Full, Learned, Policy, route_of
from dyncompile.program import MODES, Choice, Domain, Mode, Program, Route, flat_inputs
from dyncompile.runtime import ops
from dyncompile.runtime.compiled import GraphForward, compile_graph
from dyncompile.runtime.dense import densify, unmaskable
from dyncompile.runtime.flat import Flat, flatten, side_by_side
from dyncompile.runtime.grouping import Channels, Costs
from dyncompile.runtime.record import Execution as Execution
from dyncompile.runtime.record import Record as Record
from dyncompile.runtime.rows import merge_outputs
from dyncompile.runtime.segment import Segment
from dyncompile.runtime.segments import cut, parting
from dyncompile.runtime.sizes import BySize
from dyncompile.runtime.sparse import SparseRun
from dyncompile.runtime.steering import Deciding, check_names, group_rows, plan_route
from dyncompile.state import GATES, STATE_PREFIX, Dtypes, dtypes_of
from dyncompile.variants import at, columns_of, copy_program


class DynamicModel(Pretrained, nn.Module):
    """A network with decision points. At `Full` it equals the network that it was made from, bit for bit.

    It has the source's parameters and buffers under the source's names; what passes added lies under
    ``dyn.``. `.train()` and `.eval()` choose between two graphs over this one state. Calling it decides by
    `policy` (``Learned()`` at first); `run` takes a policy and returns the route as well.
    """

    policy: Policy
    captured: Dtypes
    """The types of floating-point state before any cast of the model."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self.policy = Learned()
        # The state's own dictionaries: whatever `.to()` or a load replaces in one is replaced in the other.
        for attribute in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            object.__setattr__(self, attribute, getattr(program.state, attribute))
        self.captured = dtypes_of(self)
        self._forwards: dict[Mode, GraphForward] = {}
        self._segments: dict[tuple[Mode, bool], list[Segment]] = {}
        self._costs = Costs()
        self._dense: dict[Mode, GraphForward] = {}
        self.by_size = program.variants and BySize(program, self._sizes(program))

    def _sizes(self, program: Program) -> list[DynamicModel]:
        """A model per size of the input that a choice decides, over the same state."""
        return [DynamicModel(at(program, column)) for column in columns_of(program)]

    @cached_property
    def _plain(self) -> Mapping[Mode, fx.Graph]:
        """The graphs without decision nets."""
        return {mode: without_gates(self.program.graphs[mode]) for mode in MODES}

    @cached_property
    def _flat(self) -> Mapping[Mode, Flat]:
        """The graphs that run where rows do not part."""
        return {mode: flatten(without_exits(graph), self.choices) for mode, graph in self._plain.items()}

    def _forward(self) -> GraphForward:
        """The flat graph of the present mode as a function, made when it is first asked for."""
        if self.mode not in self._forwards:
            graph = self._flat[self.mode].graph
            self._forwards[self.mode] = self._compiled(graph, self.mode, self.program.state)
        return self._forwards[self.mode]

    def _compiled(self, graph: fx.Graph, name: str, state: nn.Module) -> GraphForward:
        """How the graphs that evaluation runs become functions."""
        return compile_graph(graph, name, state)

    # -- running ------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The source's output structure, decided by `self.policy`."""
        return self.record(*args, policy=self.policy, **kwargs).output

    def run(self, *args: Any, policy: Policy, **kwargs: Any) -> tuple[Any, Route]:
        """(output, route): the route holds the decisions [B, width] of every choice.

        Raises:
            InputError: the inputs do not fit what was captured.
            RouteError: a forced route does not fit the batch or a choice's domain.
        """
        record = self.record(*args, policy=policy, **kwargs)
        return record.output, record.route

    def record(self, *args: Any, policy: Policy, execution: Execution = "auto", **kwargs: Any) -> Record:
        """Run with a policy; output, route and the logits of decision nets.

        Args:
            *args, **kwargs: the source's arguments.
            policy: who decides.
            execution: "sparse" groups rows by decision and runs each group at its own sizes; "dense" runs all
                rows at full size and masks what decisions drop, so that gradients reach decision nets. They
                agree on hard decisions. "auto" is dense where a decision net is being trained.

        Raises:
            InputError: the inputs do not fit what was captured.
            RouteError: a forced route does not fit the batch or a choice's domain, or cannot be masked.
        """
        signature = self.program.signature
        flat = signature.flatten(args, kwargs)
        done = self.execute(flat, signature.rows(flat), policy, execution)
        unflatten = partial(signature.unflatten, training=self.training)
        early = {name: unflatten(outputs) for name, outputs in done.early.items()}
        return replace(done, output=unflatten(done.output), early=early)

    def execute(self, flat: Sequence[Any], rows: int, policy: Policy, execution: Execution) -> Record:
        """`record` for flat graph inputs of `rows` rows, whose flat outputs are the record's `output`."""
        check_names(policy, self.choices)
        if self.by_size is not None:
            return self.by_size.run(self.mode, flat, rows, policy, execution)
        asks = policy.reads_gates and bool(self.gated)
        if execution == "dense" or (execution == "auto" and asks and self._trains_gates()):
            return self._run_dense(flat, rows, policy)
        planned: Route = {} if asks else plan_route(policy, self.choices, rows)
        groups = [] if asks else group_rows(planned, self.choices, rows, self._parting)
        parts = len(groups) != 1 or self._leaves(planned) or self._picks(planned)
        if not parts and self._flat["eval"].serves(planned):
            outputs = self._forward()(groups[0], *flat)
            return Record(outputs, planned, {})
        return self._run_sparse(flat, rows, policy, planned)

    def _leaves(self, route: Route) -> bool:
        """Whether some row takes an early exit."""
        return any(bool((route[name] > 0).any()) for name in self.exits)

    def _picks(self, route: Route) -> bool:
        """Whether some row leaves out a channel, where execution chooses what to do about it."""
        choices = () if self.training else {one.choice for one in self.program.picked.values()}
        return any(bool((route[choice] == 0).any()) for choice in choices)

    @cached_property
    def _parting(self) -> set[str]:
        """Choices by which rows part."""
        return parting(self._plain["eval"])

    def _trains_gates(self) -> bool:
        if not torch.is_grad_enabled():
            return False
        return any(p.requires_grad for name, p in self.named_parameters() if name.startswith(f"{GATES}."))

    def _run_dense(self, flat: Sequence[Any], rows: int, policy: Policy) -> Record:
        if self.unmaskable:
            name, how = next(iter(self.unmaskable.items()))
            raise RouteError(
                f"{name} cannot be masked: {how} mixes its positions",
                fix='run with execution="sparse"',
            )
        if self.mode not in self._dense:
            self._dense[self.mode] = compile_graph(
                densify(self.program, self.facts.dims, self.mode), f"dense {self.mode}", self.program.state
            )
        steering = Deciding(policy, self.choices, torch.arange(rows))
        outputs = self._dense[self.mode](steering, *flat)
        early = {
            name: [found if isinstance(out, Tensor) else out for out in outputs]
            for name, found in steering.early.items()
        }
        return Record(outputs, steering.route, steering.logits, early)

    def _run_sparse(self, flat: Sequence[Any], rows: int, policy: Policy, planned: Route) -> Record:
        run = SparseRun(
            self._cut(asks=policy.reads_gates), self.facts.dims.graphs[self.mode].types, self.choices
        )
        done = run.run(dict(zip(self._inputs, flat, strict=True)), rows, policy, planned)
        parts, rows_of = [out for _, out in done.parts], torch.cat([at for at, _ in done.parts])
        outputs = merge_outputs(parts, rows_of, self.output_types[self.mode])
        return Record(outputs, done.route, done.logits)

    def _cut(self, *, asks: bool) -> list[Segment]:
        """The segments of the present mode's graph, with or without its decision nets."""
        key = self.mode, asks
        if key not in self._segments:
            graph = self.program.graphs[self.mode] if asks else self._plain[self.mode]
            types = self.facts.dims.graphs[self.mode].types
            self._segments[key] = cut(
                graph, types, self.program, self._channels(), self._compiled, blocks=not self.training
            )
        return self._segments[key]

    def _channels(self) -> Channels | None:
        """What picked dims are worth; statistics in training are those of the channels that are kept."""
        if not self.program.picked or self.training:
            return None
        weights = parameter_costs(self.program.graphs["eval"], self.facts)
        return Channels(self.program.picked, self.facts.macs.nodes, weights, self.costs)

    @property
    def costs(self) -> Costs:
        """By what execution chooses how rows run that keep different channels; see `Costs`."""
        return self._costs

    @costs.setter
    def costs(self, costs: Costs) -> None:
        if costs != self._costs:
            self._segments.clear()
        self._costs = costs
        for model in () if self.by_size is None else self.by_size.models:
            model.costs = costs

    @cached_property
    def _inputs(self) -> list[str]:
        """Names of the flat inputs; both graphs agree on them."""
        return [node.name for node in flat_inputs(self.program.graphs["eval"])]

    @cached_property
    def unmaskable(self) -> Mapping[str, str]:
        """Resized dims that masked execution cannot stand for -> the operator that mixes their positions."""
        return unmaskable(self.facts.dims, self.program.sized)

    def alternatives(self, *args: Any, **kwargs: Any) -> list[tuple[Tensor, Tensor]]:
        """(what the source computes, an alternative's output) for all alternatives with parameters.

        Everything runs at full capacity in evaluation mode, so that alternatives see what the source's parts
        see; norms inside alternatives alone use, and update, the statistics of the batch.
        """
        flat = self.program.signature.flatten(args, kwargs)
        rows = self.program.signature.rows(flat)
        (group,) = group_rows(plan_route(Full(), self.choices, rows), self.choices, rows, ())
        found = self._pairs(group, *flat)
        return list(zip(found[::2], found[1::2], strict=True))

    @cached_property
    def _pairs(self) -> GraphForward:
        return compile_graph(side_by_side(self._plain["eval"]), "alternatives", self.program.state)

    # -- facts --------------------------------------------------------------------------------

    @property
    def mode(self) -> Mode:
        """Which graph runs."""
        return "train" if self.training else "eval"

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

    def explain(self) -> str:
        """Sites, rejections with reasons, and what share of parameters and MACs the choices cover."""
        from dyncompile.report.text import explain_model

        return explain_model(self)

    def extra_repr(self) -> str:
        """Passes and choices, for `print`."""
        return f"history={list(self.history)}, choices={list(self.choices)}"

    def __deepcopy__(self, memo: dict[int, Any]) -> DynamicModel:
        new = self._like(copy_program(self.program, memo))
        memo[id(self)] = new
        new.policy, new.costs, new.captured = self.policy, self.costs, self.captured
        return new.train(self.training)

    def _like(self, program: Program) -> DynamicModel:
        """A model of the same kind."""
        return type(self)(program)
