"""Runs of a network whose input size is decided per row: decide, resize, run each size's graph, merge.

    d = decide(policy, name, net(x))                 [B, sizes], on the input as it comes
    rows of column k:  y = run_k(resize(x[rows], size_k))
    y <- y * d[rows, k]                              floating outputs; 1 in value, has the decision's gradient

At the native size the input is not touched. Rows part by size in training, too, so that each size's norms see
their own samples. That what a size gives is multiplied by its decision is our choice (the paper leaves open
how the task loss reaches the predictor).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dyncompile.analysis.dims.call import Type
from dyncompile.analysis.dims.facts import dim_facts
from dyncompile.analysis.macs import evaluate, macs_facts
from dyncompile.cost import by_column
from dyncompile.policies import Forced, Policy
from dyncompile.program import Mode, Program, Route
from dyncompile.runtime import ops
from dyncompile.runtime.compiled import compile_graph
from dyncompile.runtime.record import Execution, Record
from dyncompile.runtime.rows import batch_axis, merge_outputs
from dyncompile.runtime.steering import Deciding, plan_route, runs_masked

if TYPE_CHECKING:
    from dyncompile.runtime.model import DynamicModel


class BySize:
    """A program of several sizes, with a model per size over its state."""

    def __init__(self, program: Program, models: Sequence[DynamicModel]) -> None:
        assert program.variants is not None
        self._program, self._variants, self.models = program, program.variants, tuple(models)
        self.choice = program.choices[self._variants.choice]
        self._heads = {
            mode: compile_graph(graph, f"{mode} head", program.state)
            for mode, graph in self._variants.heads.items()
        }

    @property
    def native(self) -> DynamicModel:
        """The model at the size that the network was captured at."""
        return self.models[self._variants.native]

    @cached_property
    def decision_macs(self) -> float:
        """MACs per sample of the net that decides on the size."""
        heads = replace(self._program, graphs=self._variants.heads, variants=None)
        graph = heads.graphs["eval"]
        return float(evaluate(macs_facts(graph, dim_facts(heads).graphs["eval"]).deciding, {}))

    def spent(self, route: Route) -> Tensor:
        """MACs of each row of a learned route, decisions included: float64 [B]."""
        return by_column(self.choice, [model.spent for model in self.models], route) + self.decision_macs

    def model_of(self, route: Route) -> DynamicModel:
        """The model of the size that all rows of a route have in common; the native one if it names none."""
        rows = route.get(self.choice.name)
        return self.native if rows is None else self.models[int(rows[0].argmax())]

    def batch(self, column: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """Flat inputs of a call at the size of a column. Raises InputError."""
        return self.resized(column, self._program.signature.flatten(args, kwargs))

    def resized(self, column: int, flat: Sequence[Any]) -> list[Any]:
        """Flat inputs as the size of a column takes them."""
        out, at = list(flat), self._variants.image
        if column != self._variants.native:
            out[at] = ops.resized(out[at], self._variants.sizes[column])
        return out

    def run(self, mode: Mode, flat: Sequence[Any], rows: int, policy: Policy, execution: Execution) -> Record:
        """Decide sizes and run all rows; see `DynamicModel.execute`."""
        for model in self.models:
            model.training = mode == "train"
        deciding, planned = self._decided(mode, flat, rows, policy)
        decision = deciding.route[self.choice.name]
        is_hard = bool(((decision == 0) | (decision == 1)).all())
        if runs_masked(policy, execution, relaxed=not is_hard):
            done = self._mixed(mode, flat, decision, policy, planned)
        else:
            done = self._parted(mode, flat, decision, policy, planned, execution)
        route, logits = {**deciding.route, **done.route}, {**deciding.logits, **done.logits}
        return replace(done, route=route, logits=logits)

    def _decided(
        self, mode: Mode, flat: Sequence[Any], rows: int, policy: Policy
    ) -> tuple[Deciding, Route | None]:
        """The sizes of all rows, and the whole route where no decision net is asked."""
        deciding = Deciding(policy, {self.choice.name: self.choice}, torch.arange(rows))
        if policy.reads_gates:
            self._heads[mode](deciding, *flat)
            return deciding, None
        planned = plan_route(policy, self._program.choices, rows)
        deciding.route[self.choice.name] = planned[self.choice.name]
        return deciding, planned

    def _policy(self, policy: Policy, planned: Route | None, index: Tensor) -> Policy:
        """What decides the other choices of the rows at `index` [n]."""
        if planned is None:
            return policy
        others = {name: one for name, one in planned.items() if name != self.choice.name}
        return Forced({name: one[index.to(one.device)] for name, one in others.items()})

    def _types(self, mode: Mode) -> list[Type]:
        return self.native.output_types[mode]

    # -- one size per row -------------------------------------------------------------------------

    def _parted(
        self,
        mode: Mode,
        flat: Sequence[Any],
        decision: Tensor,
        policy: Policy,
        planned: Route | None,
        execution: Execution,
    ) -> Record:
        learns = torch.is_grad_enabled() and decision.requires_grad
        indices: list[Tensor] = []
        records: list[Record] = []
        for column, index in self._groups(decision):
            part = self.resized(column, self._rows(flat, index, len(decision)))
            record = self.models[column].execute(
                part, len(index), self._policy(policy, planned, index), execution
            )
            if learns:
                gains = decision[index.to(decision.device), column]
                record = replace(record, output=self._gained(mode, record.output, gains))
            indices.append(index)
            records.append(record)
        types = self._types(mode) if len(records) > 1 else []
        rows = torch.cat(indices)
        order = rows.argsort()
        return Record(
            merge_outputs([record.output for record in records], rows, types),
            _together([record.route for record in records], order),
            _together([_whole(r.logits, i) for r, i in zip(records, indices, strict=True)], order),
            {name: merge_outputs([r.early[name] for r in records], rows, types) for name in records[0].early},
        )

    def _groups(self, decision: Tensor) -> list[tuple[int, Tensor]]:
        """(column, positions [n]) of every size that some row takes; the native one for an empty batch."""
        columns = decision.detach().argmax(1).cpu()
        if not len(columns):
            return [(self._variants.native, torch.arange(0))]
        present = sorted(set[int](columns.tolist()))  # pyright: ignore
        return [(column, (columns == column).nonzero().flatten()) for column in present]

    def _rows(self, flat: Sequence[Any], index: Tensor, rows: int) -> Sequence[Any]:
        """Flat inputs of some rows; the very inputs where these are all."""
        if len(index) == rows:
            return flat
        return [
            value.index_select(0, index.to(value.device)) if leaf.batched else value
            for leaf, value in zip(self._program.signature.leaves, flat, strict=True)
        ]

    def _gained(self, mode: Mode, outputs: Sequence[Any], gains: Tensor) -> list[Any]:
        """Floating outputs times gains [n]; what has no rows, or no floating values, as it is."""
        return [
            value if (axis := _gained_axis(value, found)) is None else ops.times(value, gains, axis)
            for value, found in zip(outputs, self._types(mode), strict=True)
        ]

    # -- all sizes for all rows -------------------------------------------------------------------

    def _mixed(
        self, mode: Mode, flat: Sequence[Any], decision: Tensor, policy: Policy, planned: Route | None
    ) -> Record:
        """Every row at every size, weighted by its decision."""
        every = torch.arange(len(decision))
        records = [
            model.execute(
                self.resized(column, flat), len(every), self._policy(policy, planned, every), "dense"
            )
            for column, model in enumerate(self.models)
        ]
        whole = records[self._variants.native]

        def weighted(flat: Sequence[Sequence[Any]]) -> list[Any]:
            types = enumerate(self._types(mode))
            return [self._weighted(decision, [outputs[i] for outputs in flat], found) for i, found in types]

        weights = decision.detach()
        return Record(
            weighted([record.output for record in records]),
            {name: _mixture(weights, [r.route[name] for r in records]) for name in whole.route},
            {name: _mixture(weights, [r.logits[name] for r in records]) for name in whole.logits},
            {name: weighted([r.early[name] for r in records]) for name in whole.early},
        )

    def _weighted(self, decision: Tensor, values: Sequence[Any], found: Type) -> Any:
        """One output of all sizes: the weighted sum, or the rows of each row's size."""
        axis = _gained_axis(values[0], found)
        if axis is not None:
            return sum(ops.times(value, decision[:, k], axis) for k, value in enumerate(values))
        groups = self._groups(decision)
        picked = [
            [_picked(values[column], found, index)] if len(groups) > 1 else [values[column]]
            for column, index in groups
        ]
        return merge_outputs(picked, torch.cat([index for _, index in groups]), [found])[0]


def _gained_axis(value: Any, found: Type) -> int | None:
    """The axis that holds the rows of a floating output; None for any other."""
    return batch_axis(found) if isinstance(value, Tensor) and value.is_floating_point() else None


def _picked(value: Any, found: Type, index: Tensor) -> Any:
    axis = batch_axis(found)
    return value if axis is None else value.index_select(axis, index.to(value.device))


def _mixture(weights: Tensor, values: Sequence[Tensor]) -> Tensor:
    """``sum_k weights[:, k] values[k]`` [B, width]."""
    parts = (value * weights[:, k : k + 1].to(value) for k, value in enumerate(values))
    return sum(parts, torch.zeros_like(values[0]))


def _together(parts: Sequence[Mapping[str, Tensor]], order: Tensor) -> dict[str, Tensor]:
    """Rows of all parts in the order of the batch; what some part lacks is left out."""
    names = [name for name in parts[0] if all(name in part for part in parts)]
    joined = {name: torch.cat([part[name] for part in parts]) for name in names}
    return {name: value[order.to(value.device)] for name, value in joined.items()}


def _whole(logits: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    """Logits that all rows of a part were asked for."""
    return {name: value for name, value in logits.items() if len(value) == len(index)}
