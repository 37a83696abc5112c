"""The dynamic model: a plain trainable `nn.Module` around a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

import torch
from torch import Tensor, fx, nn

from dyncompile.analysis.dims.algebra import BATCH
from dyncompile.analysis.dims.call import Type
from dyncompile.analysis.facts import Facts, analyze
from dyncompile.analysis.skips import find_skips
from dyncompile.cost import Macs
from dyncompile.errors import InputError, RouteError
from dyncompile.gate import without_gates
from dyncompile.hub import Pretrained
from dyncompile.plan import Plan
from dyncompile.policies import Full, Learned, Policy, route_of
from dyncompile.program import MODES, POLICY, Choice, Mode, Program, Route
from dyncompile.runtime import ops
from dyncompile.runtime.compiled import GraphForward, compile_graph
from dyncompile.runtime.dense import densify, unmaskable
from dyncompile.runtime.segments import Segment, cut, parting
from dyncompile.runtime.sparse import SparseRun
from dyncompile.runtime.steering import Deciding, check_names, group_rows, plan_route
from dyncompile.state import GATES

Execution = Literal["auto", "sparse", "dense"]
"""How a batch of mixed decisions runs: rows grouped by decision, or masked; see `DynamicModel.record`."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a run gave and what was decided on the way.

    Attributes:
        output: the source's output structure.
        route: decisions [B, width] of every choice; where gradients are on they carry them.
        logits: outputs [B, width] of the decision nets that were asked.
    """

    output: Any
    route: Route
    logits: Mapping[str, Tensor]


class DynamicModel(Pretrained, nn.Module):
    """A network with decision points. At `Full` it equals the network that it was made from, bit for bit.

    It has the source's parameters and buffers under the source's names; what passes added lies under
    ``dyn.``. `.train()` and `.eval()` choose between two graphs over this one state. Calling it decides by
    `policy` (``Learned()`` at first); `run` takes a policy and returns the route as well.
    """

    policy: Policy

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self.policy = Learned()
        # The state's own dictionaries: whatever `.to()` or a load replaces in one is replaced in the other.
        for attribute in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            object.__setattr__(self, attribute, getattr(program.state, attribute))
        plain: dict[Mode, fx.Graph] = {mode: without_gates(program.graphs[mode]) for mode in MODES}
        self._plain = plain
        self._forwards = {mode: compile_graph(plain[mode], mode, program.state) for mode in MODES}
        self._segments: dict[tuple[Mode, bool], list[Segment]] = {}
        self._dense: dict[Mode, GraphForward] = {}

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
        flat = self.program.signature.flatten(args, kwargs)
        rows = self.program.signature.rows(flat)
        check_names(policy, self.choices)
        asks = policy.reads_gates and bool(self.gated)
        if execution == "dense" or (execution == "auto" and asks and self._trains_gates()):
            return self._run_dense(flat, rows, policy)
        planned: Route = {} if asks else plan_route(policy, self.choices, rows)
        groups = [] if asks else group_rows(planned, self.choices, rows, self._parting)
        if len(groups) == 1 and not self._skips(planned):
            outputs = self._forwards[self.mode](groups[0], *flat)
            return Record(self.program.signature.unflatten(outputs), planned, {})
        return self._run_sparse(flat, rows, policy, planned)

    def _skips(self, route: Route) -> bool:
        """Whether some row leaves out a branch."""
        return any(
            bool((route[choice] @ torch.tensor(weights).to(route[choice]) == 0).any())
            for choice, weights in self._conditions
        )

    @cached_property
    def _conditions(self) -> list[tuple[str, tuple[float, ...]]]:
        """What decides whether branches run."""
        return list(dict.fromkeys(skip.condition for skip in find_skips(self._plain["eval"])))

    @cached_property
    def _parting(self) -> set[str]:
        """Choices by which rows part."""
        return parting(self._plain["eval"])

    def _trains_gates(self) -> bool:
        if not torch.is_grad_enabled():
            return False
        return any(p.requires_grad for p in self.get_submodule(GATES).parameters())

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
        return Record(self.program.signature.unflatten(outputs), steering.route, steering.logits)

    def _run_sparse(self, flat: Sequence[Any], rows: int, policy: Policy, planned: Route) -> Record:
        run = SparseRun(
            self._cut(asks=policy.reads_gates), self.facts.dims.graphs[self.mode].types, self.choices
        )
        done = run.run(dict(zip(self._inputs, flat, strict=True)), rows, policy, planned)
        outputs = self._merge([out for _, out in done.parts], torch.cat([at for at, _ in done.parts]))
        return Record(self.program.signature.unflatten(outputs), done.route, done.logits)

    def _cut(self, *, asks: bool) -> list[Segment]:
        """The segments of the present mode's graph, with or without its decision nets."""
        key = self.mode, asks
        if key not in self._segments:
            graph = self.program.graphs[self.mode] if asks else self._plain[self.mode]
            types = self.facts.dims.graphs[self.mode].types
            self._segments[key] = cut(graph, types, self.program)
        return self._segments[key]

    @cached_property
    def _inputs(self) -> list[str]:
        """Names of the flat inputs; both graphs agree on them."""
        nodes = [node for node in self.program.graphs["eval"].nodes if node.op == "placeholder"]
        return [node.name for node in nodes if node.target != POLICY]

    @cached_property
    def unmaskable(self) -> Mapping[str, str]:
        """Resized dims that masked execution cannot stand for -> the operator that mixes their positions."""
        return unmaskable(self.facts.dims, self.program.sized)

    def _merge(self, parts: Sequence[Sequence[Any]], rows: Tensor) -> list[Any]:
        """Outputs of all groups in the order of the batch."""
        if len(parts) == 1:
            return list(parts[0])
        order = torch.empty_like(rows)
        order[rows] = torch.arange(len(rows))
        types = self._output_types[self.mode]
        return [
            _merge_one(list(values), found, order)
            for values, found in zip(zip(*parts, strict=True), types, strict=True)
        ]

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
        nodes = [node for node in self.program.graphs["eval"].nodes if node.target is ops.decide]
        return tuple(str(node.args[1]) for node in nodes if len(node.args) > 2)

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
        return analyze(self.program)

    @cached_property
    def _path_cost(self) -> Macs:
        return Macs(self.program, self.facts.macs.nodes)

    @cached_property
    def _output_types(self) -> dict[Mode, list[Type]]:
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
        return self._path_cost(route)

    @property
    def priced(self) -> frozenset[str]:
        """Choices that MACs depend on."""
        return self._path_cost.choices

    @cached_property
    def static_macs(self) -> float:
        """MACs of the source per sample."""
        full = {name: Full().decide(choice, 1, None) for name, choice in self.choices.items()}
        return float(self.macs(full)[0])

    @cached_property
    def decision_macs(self) -> float:
        """MACs per sample that the decision nets cost on top of the path, at full size."""
        full = {name: Full().decide(choice, 1, None) for name, choice in self.choices.items()}
        return float(Macs(self.program, self.facts.macs.decisions)(full)[0])

    def explain(self) -> str:
        """Sites, rejections with reasons, and what share of parameters and MACs the choices cover."""
        from dyncompile.report.text import explain_model

        return explain_model(self)

    def extra_repr(self) -> str:
        """Passes and choices, for `print`."""
        return f"history={list(self.history)}, choices={list(self.choices)}"

    def __deepcopy__(self, memo: dict[int, Any]) -> DynamicModel:
        from dyncompile.rewrite import copy_program

        new = DynamicModel(copy_program(self.program, memo))
        memo[id(self)] = new
        new.policy = self.policy
        return new.train(self.training)


def _merge_one(values: list[Any], found: Type, order: Tensor) -> Any:
    """One output of all groups: rows back in order along its batch axis."""
    if not isinstance(values[0], Tensor):
        if any(value != values[0] for value in values):
            raise InputError(
                "an output that is not a tensor depends on the route", fix="run one route at a time"
            )
        return values[0]
    dims = found if isinstance(found, tuple) else ()
    axis = next((i for i, dim in enumerate(dims) if BATCH in dim), None)
    if axis is None or dims[axis][0] != BATCH:
        raise InputError(
            "an output has no batch axis, so results of different routes cannot be put together",
            fix="run samples of one route at a time (a forced route with a single row)",
        )
    whole = torch.cat(values, axis)
    rows = order.to(whole.device)
    if dims[axis] == (BATCH,):
        return whole.index_select(axis, rows)
    by_row = torch.unflatten(whole, axis, (len(rows), -1))
    return by_row.index_select(axis, rows).flatten(axis, axis + 1)
