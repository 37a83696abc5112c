"""From a graph that narrows to one that masks, for gradients that reach decisions.

Every size is full. What is summed over is masked first; masking a value is as good as removing it wherever
nothing normalizes over it, and two norms are replaced by ones that know the rows' decisions. `unmaskable`
lists the dims for which that does not hold.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from dyncompile.analysis.dims.algebra import Dim, elastics
from dyncompile.analysis.dims.call import TensorType, bind
from dyncompile.analysis.dims.dead import cuts
from dyncompile.analysis.dims.facts import DimFacts
from dyncompile.analysis.sums import Sums
from dyncompile.program import Mode, Program, copy_graph
from dyncompile.resize import drop_unused, restore_reads
from dyncompile.runtime import masks, ops
from dyncompile.runtime.rows import rows_in

aten = torch.ops.aten


def unmaskable(dims: DimFacts, names: Iterable[str]) -> dict[str, str]:
    """Elastic dims that cannot be masked -> the operator that mixes their positions."""
    obstacles = [dims.elastic[name] for name in names if not dims.elastic[name].maskable]
    return {one.dim.name: one.mixed[0].how for one in obstacles}


def densify(program: Program, dims: DimFacts, mode: Mode) -> fx.Graph:
    """The masked form of one graph of a program."""
    return _Densifier(program, dims, mode).run()


class _Densifier:
    def __init__(self, program: Program, dims: DimFacts, mode: Mode) -> None:
        self._graph = copy_graph(program.graphs[mode])
        self._sized, self._types = program.sized, dict(dims.graphs[mode].types)
        self._sums = Sums(self._types, dims.graphs[mode].contractions)
        self._decisions = {str(n.args[1]): n for n in self._graph.nodes if n.target is ops.decide}
        self._masks: dict[Any, fx.Node] = {}

    def run(self) -> fx.Graph:
        self._private_norms()
        restore_reads(self._graph)
        for node in [n for n in self._graph.nodes if n.target in (ops.extent, ops.count)]:
            node.replace_all_uses_with(_full_size(node))
            self._graph.erase_node(node)
        for node in [n for n in self._graph.nodes if n.op == "call_function"]:
            self._visit(node)
        drop_unused(self._graph, (ops.pick, ops.active, masks.mask))
        self._graph.lint()
        return self._graph

    # -- norms --------------------------------------------------------------------------------

    def _private_norms(self) -> None:
        for node in [n for n in self._graph.nodes if n.target is aten.batch_norm.default]:
            given = bind(node)
            mean, variance = given["running_mean"], given["running_var"]
            if not isinstance(mean, fx.Node) or mean.target is not ops.pick:
                continue
            decision, means = mean.args
            dim = self._sums.dims(node)[1]
            choice = str(decision.args[1])  # pyright: ignore
            with self._graph.inserting_before(node):
                new = self._graph.call_function(
                    masks.grouped_batch_norm,
                    (
                        *(given[name] for name in ("input", "weight", "bias")),
                        *(decision, means, variance.args[1], self._table(dim, choice)),
                        *(given[name] for name in ("training", "momentum", "eps")),
                    ),
                )
            self._replace(node, new)

    def _layer_norm(self, node: fx.Node) -> None:
        given, dims = bind(node), self._sums.dims(node)
        if len(given["normalized_shape"]) != 1 or not self._choices(dims[-1]):
            return
        own = self._mask(given["input"], dims, len(dims) - 1)
        if own is None:
            return
        with self._graph.inserting_before(node):
            new = self._graph.call_function(
                masks.masked_layer_norm,
                (given["input"], own, given["weight"], given["bias"], given["eps"]),
            )
        self._replace(node, new)

    def _replace(self, node: fx.Node, new: fx.Node) -> None:
        new.meta = dict(node.meta)
        self._types[new.name] = self._types.get(node.name)
        node.replace_all_uses_with(new)
        self._graph.erase_node(node)

    # -- masks --------------------------------------------------------------------------------

    def _visit(self, node: fx.Node) -> None:
        if node.target is aten.layer_norm.default:
            self._layer_norm(node)
            return
        if node.target in (ops.decide, masks.mask, masks.masked) or cuts(node):
            return  # what a cut leaves is masked where it is summed over, and written into until then
        summed = set[Dim]()
        for operand in node.all_input_nodes:
            current, dims = operand, self._sums.dims(operand)
            for axis, dim in enumerate(dims):
                if dim not in summed and self._choices(dim) and self._sums.over(node, operand, axis):
                    before, current = current, self._mask_operand(node, current, dims, axis)
                    summed |= {dim} if current is not before else set()

    def _mask_operand(self, node: fx.Node, operand: fx.Node, dims: TensorType, axis: int) -> fx.Node:
        """Mask an operand where it is read: what is written in place before is seen."""
        own = self._mask(operand, dims, axis)
        if own is None:
            return operand
        with self._graph.inserting_before(node):
            new = self._graph.call_function(masks.masked, (operand, own))
        new.meta = dict(operand.meta)
        node.replace_input_with(operand, new)
        return new

    def _mask(self, like: fx.Node, dims: TensorType, axis: int) -> fx.Node | None:
        """The mask of one axis of a value; None where the value has no rows."""
        place = rows_in(dims)
        if place is None or place[0] == axis:
            return None
        batch, outer = place
        key = (dims[axis], len(dims), axis, batch, dims[batch])
        if key not in self._masks:
            choices = self._choices(dims[axis])
            decisions = [self._decisions[choice] for choice in choices]
            tables = tuple(self._table(dims[axis], choice) for choice in choices)
            with self._graph.inserting_after(max(like, *decisions)):
                arguments = (like, axis, batch, decisions, tables, outer)
                self._masks[key] = self._graph.call_function(masks.mask, arguments)
        return self._masks[key]

    def _table(self, dim: Dim, choice: str) -> masks.Table:
        moving = [e.name for e in elastics(dim) if e.name in self._sized]
        order = [name for name in moving if self._sized[name].choice == choice]
        return ops.encode(dim, order), tuple(self._sized[name].sizes for name in order)

    def _choices(self, dim: Dim) -> list[str]:
        return list(dict.fromkeys(self._sized[e.name].choice for e in elastics(dim) if e.name in self._sized))


def _full_size(node: fx.Node) -> int:
    """The largest size that a decision can ask for."""
    if node.target is ops.extent:
        return max(node.args[1])  # pyright: ignore
    (index,) = node.all_input_nodes
    return int(index.args[2])  # pyright: ignore
