"""The dynamic model: a plain trainable `nn.Module` around a program."""

from __future__ import annotations

import linecache
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from dyncompile.analysis.dims.algebra import BATCH
from dyncompile.analysis.dims.call import Type
from dyncompile.analysis.facts import Facts, analyze
from dyncompile.cost import Macs
from dyncompile.errors import InputError
from dyncompile.plan import Plan
from dyncompile.policies import Full, Learned, Policy, route_of
from dyncompile.program import MODES, Choice, Mode, Program, Route
from dyncompile.runtime.steering import Group, group_rows, plan_route

GraphForward = Callable[..., Sequence[Any]]


class DynamicModel(nn.Module):
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
        self._forwards = {mode: compile_graph(program.graphs[mode], mode) for mode in MODES}

    # -- running ------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The source's output structure, decided by `self.policy`."""
        return self._run(self.policy, args, kwargs)[0]

    def run(self, *args: Any, policy: Policy, **kwargs: Any) -> tuple[Any, Route]:
        """(output, route): the route holds the decisions [B, width] of every choice.

        Raises:
            InputError: the inputs do not fit what was captured.
            RouteError: a forced route does not fit the batch or a choice's domain.
        """
        return self._run(policy, args, kwargs)

    def _run(self, policy: Policy, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Route]:
        flat = self.program.signature.flatten(args, kwargs)
        rows = self.program.signature.rows(flat)
        route = plan_route(policy, self.program.choices, rows)
        groups = group_rows(route, rows)
        if len(groups) == 1:
            outputs: Sequence[Any] = self._run_group(groups[0], flat)
        else:
            parts = [self._run_group(group, self._select(flat, group)) for group in groups]
            outputs = self._merge(parts, torch.cat([group.rows for group in groups]))
        return self.program.signature.unflatten(outputs), route

    def _run_group(self, group: Group, flat: Sequence[Any]) -> Sequence[Any]:
        return self._forwards[self.mode](self.program.state, group, *flat)

    def _select(self, flat: Sequence[Any], group: Group) -> list[Any]:
        leaves = self.program.signature.leaves
        return [
            value.index_select(0, group.rows.to(value.device)) if leaf.batched else value
            for leaf, value in zip(leaves, flat, strict=True)
        ]

    def _merge(self, parts: Sequence[Sequence[Any]], rows: Tensor) -> list[Any]:
        """Outputs of all groups in the order of the batch."""
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
        return Macs(self.program, self.facts.macs.path)

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
    def static_macs(self) -> float:
        """MACs of the source per sample."""
        full = {name: Full().decide(choice, 1, None) for name, choice in self.choices.items()}
        return float(self.macs(full)[0])

    @property
    def decision_macs(self) -> float:
        """MACs per sample that the decision nets cost on top of the path, at full size."""
        full = {name: Full().decide(choice, 1, None) for name, choice in self.choices.items()}
        return float(Macs(self.program, self.facts.macs.deciding)(full)[0])

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


def compile_graph(graph: fx.Graph, name: str) -> GraphForward:
    """A graph as a Python function of (state, policy, *flat inputs), with source lines in tracebacks."""
    code = graph.python_code("self")
    namespace: dict[str, Any] = dict(code.globals)
    filename = f"<dyncompile {name} graph {id(graph):x}>"
    linecache.cache[filename] = (len(code.src), None, code.src.splitlines(keepends=True), filename)
    exec(compile(code.src, filename, "exec"), namespace)
    return cast(GraphForward, namespace["forward"])


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
