"""The dynamic model: a plain trainable `nn.Module` around a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from dyncompile.cost import parameter_costs
from dyncompile.errors import DyncompileError, RouteError, SpecError
from dyncompile.exits import without_exits
from dyncompile.gate import without_gates
from dyncompile.hub import Pretrained
from dyncompile.policies import Full, Learned, Policy
from dyncompile.program import MODES, Mode, Program, Route, flat_inputs
from dyncompile.runtime.compiled import GraphForward, compile_graph
from dyncompile.runtime.dense import densify, unmaskable
from dyncompile.runtime.described import Described
from dyncompile.runtime.flat import Flat, flatten, side_by_side
from dyncompile.runtime.grouping import Channels, Costs
from dyncompile.runtime.record import Execution as Execution
from dyncompile.runtime.record import Record as Record
from dyncompile.runtime.record import check_execution
from dyncompile.runtime.rows import merge_outputs
from dyncompile.runtime.segment import Segment
from dyncompile.runtime.segments import cut, parting
from dyncompile.runtime.sizes import BySize
from dyncompile.runtime.sparse import SparseRun
from dyncompile.runtime.steering import (
    Deciding,
    check_names,
    group_rows,
    is_relaxed,
    plan_route,
    runs_masked,
)
from dyncompile.state import FOLDED, GATES, holds
from dyncompile.torchlib import untraced
from dyncompile.variants import at, columns_of, copy_program


class DynamicModel(Pretrained, Described):
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
        self._forwards: dict[Mode, GraphForward] = {}
        self._segments: dict[tuple[Mode, bool], list[Segment]] = {}
        self._costs = Costs()
        self._dense: dict[Mode, GraphForward] = {}
        self.by_size = program.variants and BySize(program, self._sizes(program))
        self.host(program.state)

    def _sizes(self, program: Program) -> list[DynamicModel]:
        """A model per size of the input that a choice decides, over the same state."""
        return [DynamicModel(at(program, column)) for column in columns_of(program)]

    @cached_property
    @untraced
    def _plain(self) -> Mapping[Mode, fx.Graph]:
        """The graphs without decision nets."""
        return {mode: without_gates(self.program.graphs[mode]) for mode in MODES}

    @cached_property
    @untraced
    def _flat(self) -> Mapping[Mode, Flat]:
        """The graphs that run where rows do not part."""
        return {mode: flatten(without_exits(graph), self.choices) for mode, graph in self._plain.items()}

    @untraced
    def _forward(self) -> GraphForward:
        """The flat graph of the present mode as a function, made when it is first asked for."""
        if self.mode not in self._forwards:
            graph = self._flat[self.mode].graph
            self._forwards[self.mode] = self._compiled(graph, self.mode, self.program.state)
        return self._forwards[self.mode]

    def _compiled(self, graph: fx.Graph, name: str, state: nn.Module) -> GraphForward:
        """How the graphs that evaluation runs become functions."""
        return compile_graph(graph, name, state)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As of any module, between models that are both deployed or both are not.

        Raises:
            DyncompileError: norms are folded into the state's weights, and not into the model's, or the other
                way round. Nothing is loaded.
        """
        if holds(self.program.state, FOLDED) != (FOLDED in state_dict):
            given = "deployed" if FOLDED in state_dict else "not deployed"
            raise DyncompileError(
                f"this is the state of a model that is {given}: norms are folded into one of the two",
                where=type(self).__name__,
                fix="load it into a model like the one that it is of; deploy a dynamic model anew",
            )
        return super().load_state_dict(state_dict, strict, assign)

    # -- running ------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The source's output structure, decided by `self.policy`.

        Arguments of the source that are called `policy` or `execution` can be named here, and are given by
        position to `run` and `record`.
        """
        if "policy" in kwargs or "execution" in kwargs:
            signature = self.program.signature
            args, kwargs = signature.call(signature.flatten(args, kwargs))
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
                agree on hard decisions. "auto" is dense where a decision net is being trained, or decisions
                are relaxed.

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
        check_execution(execution)
        if self.by_size is not None:
            return self.by_size.run(self.mode, flat, rows, policy, execution)
        asks = policy.reads_gates and bool(self.gated)
        relaxes = asks and is_relaxed(policy, self.choices)
        if runs_masked(policy, execution, relaxed=relaxes, trains=asks and self._trains_gates()):
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
        steering = Deciding(policy, self.choices, torch.arange(rows))
        outputs = self._masked()(steering, *flat)
        early = {
            name: [found if isinstance(out, Tensor) else out for out in outputs]
            for name, found in steering.early.items()
        }
        return Record(outputs, steering.route, steering.logits, early)

    @untraced
    def _masked(self) -> GraphForward:
        """The present mode's graph, masked, as a function."""
        if self.mode not in self._dense:
            graph = densify(self.program, self.facts.dims, self.mode)
            self._dense[self.mode] = compile_graph(graph, f"dense {self.mode}", self.program.state)
        return self._dense[self.mode]

    def _run_sparse(self, flat: Sequence[Any], rows: int, policy: Policy, planned: Route) -> Record:
        run = SparseRun(
            self._cut(asks=policy.reads_gates), self.facts.dims.graphs[self.mode].types, self.choices
        )
        done = run.run(dict(zip(self._inputs, flat, strict=True)), rows, policy, planned)
        parts, rows_of = [out for _, out in done.parts], torch.cat([at for at, _ in done.parts])
        outputs = merge_outputs(parts, rows_of, self.output_types[self.mode])
        return Record(outputs, done.route, done.logits)

    @untraced
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
        new.policy, new.costs = self.policy, self.costs
        return new.train(self.training)

    def _like(self, program: Program) -> DynamicModel:
        """A model of the same kind."""
        return type(self)(program)


def as_dynamic(model: nn.Module) -> DynamicModel:
    """A dynamic model, out of torch.compile's wrapper. Raises SpecError for any other module."""
    inner = getattr(model, "_orig_mod", model)
    if isinstance(inner, DynamicModel):
        return inner
    raise SpecError(f"{type(model).__name__} is no dynamic model", fix="give what dynamize returned")
