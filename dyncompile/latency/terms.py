"""Nodes of a graph by what their time depends on.

    time(route) = sum over terms of  runs(route) * table(sizes(route))

A node depends on the choices that size what it reads or gives, and it runs under the conditions of the
branches and exits that it lies in (`analysis.skips`, `analysis.exits`). Nodes that agree in all of that are
one term and are timed together.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, fx

from dyncompile.analysis.dims.algebra import elastics
from dyncompile.analysis.dims.call import Type, flat_types
from dyncompile.analysis.exits import exit_conditions
from dyncompile.analysis.facts import Facts
from dyncompile.analysis.macs import path_nodes
from dyncompile.analysis.skips import Condition, conditions, find_skips
from dyncompile.latency.axes import Axis, sizing_choices
from dyncompile.program import Program
from dyncompile.runtime import ops

_MOST = 64
"""Combinations of sizes of one term that are all timed; with more, each choice is timed by itself."""

Combination = tuple[int, ...]
"""An anchor for each of a term's choices."""


@dataclass(frozen=True)
class Term:
    """Nodes whose time depends on the same choices in the same way.

    Attributes:
        axes: choices that decide their sizes, sorted.
        runs: when they run on a row's path.
        needed: when anything of a row needs them, decisions included.
        on_path: whether the output depends on them through data; else only decisions do.
        multiplies: whether they are contractions, whose MACs are counted.
        nodes: names.
    """

    axes: tuple[str, ...]
    runs: tuple[Condition, ...]
    needed: tuple[Condition, ...]
    on_path: bool
    multiplies: bool
    nodes: tuple[str, ...]


_Key = tuple[tuple[str, ...], tuple[Condition, ...], tuple[Condition, ...], bool, bool]


def terms_of(program: Program, facts: Facts) -> list[Term]:
    """The terms of the evaluation graph, in the order of their first nodes."""
    graph = program.graphs["eval"]
    types, on_path = facts.dims.graphs["eval"].types, path_nodes(graph)
    skipped = _skipped(graph)
    left, unneeded = exit_conditions(graph), exit_conditions(graph, deciding=True)
    grouped: dict[_Key, list[str]] = {}
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        moving = {name for other in (node, *node.all_input_nodes) for name in _moving(types.get(other.name))}
        branch = skipped.get(node.name, ())
        key = (
            tuple(sorted(sizing_choices(moving, program))),
            (*branch, *left.get(node.name, ())),
            (*branch, *unneeded.get(node.name, ())),
            node.name in on_path,
            node.name in facts.macs.nodes or node.name in facts.macs.decisions,
        )
        grouped.setdefault(key, []).append(node.name)
    return [Term(*key, tuple(names)) for key, names in grouped.items()]


def _skipped(graph: fx.Graph) -> dict[str, tuple[Condition, ...]]:
    """Conditions of branches by node; the sum that a lone branch is added in is left out with it."""
    skips = find_skips(graph)
    found = dict(conditions(skips))
    for skip in skips:
        if skip.product.target is ops.gain and skip.kept is not None:
            (one,) = skip.alternatives
            for node in (skip.product, skip.exit):
                found[node.name] = (*found.get(node.name, ()), one.condition)
    return found


def _moving(found: Type) -> set[str]:
    return {elastic.name for dims in flat_types(found) for dim in dims for elastic in elastics(dim)}


def combinations(term: Term, axes: Mapping[str, Axis]) -> list[Combination]:
    """The sizes at which a term is timed: all combinations, or, of too many, one choice at a time."""
    counts = [len(axes[name].rows) for name in term.axes]
    if prod(counts) <= _MOST:
        return list(itertools.product(*map(range, counts)))
    full = [axes[name].full for name in term.axes]
    alone = [(*full[:i], anchor, *full[i + 1 :]) for i, count in enumerate(counts) for anchor in range(count)]
    return [tuple(full), *alone]


@dataclass(frozen=True)
class TimedTerm:
    """A term and the seconds that it took at each of its combinations: one call, all rows alike."""

    term: Term
    axes: tuple[Axis, ...]
    seconds: tuple[float, ...]

    @property
    def full(self) -> float:
        """Seconds at full size."""
        if not self._is_complete:
            return self.seconds[0]
        counts = [len(axis.rows) for axis in self.axes]
        at = 0
        for axis, count in zip(self.axes, counts, strict=True):
            at = at * count + axis.full
        return self.seconds[at]

    @property
    def _is_complete(self) -> bool:
        return len(self.seconds) == prod(len(axis.rows) for axis in self.axes)

    def value(self, on: Mapping[str, Tensor], when: Sequence[Condition], none: Tensor) -> Tensor:
        """Seconds [B] of rows under conditions, given which columns are on: float64 [B, columns] each."""
        weights = [
            axis.weights(on[name]).to(none) for name, axis in zip(self.term.axes, self.axes, strict=True)
        ]
        total = self._table(weights, none) if self._is_complete else self._alone(weights, none)
        for choice, columns in when:
            total = total * (on[choice] @ _positive(columns).to(none))
        return total

    def _table(self, weights: Sequence[Tensor], none: Tensor) -> Tensor:
        """Multilinear in the weights: what a random row with these shares takes on average."""
        value = none.new_tensor(self.seconds).reshape(1, *(w.shape[1] for w in weights))
        value = value.expand(len(none), *value.shape[1:])
        for weight in weights:
            value = (value * weight.reshape(*weight.shape, *[1] * (value.dim() - 2))).sum(1)
        return value

    def _alone(self, weights: Sequence[Tensor], none: Tensor) -> Tensor:
        """The full time, and what each choice by itself takes off it; never less than the least measured."""
        full, *rest = self.seconds
        total = none + full
        for weight in weights:
            own, rest = rest[: weight.shape[1]], rest[weight.shape[1] :]
            total = total + weight @ none.new_tensor(own) - full
        return total.clamp(min=min(self.seconds))


def _positive(weights: Sequence[float]) -> Tensor:
    return torch.tensor([float(weight > 0) for weight in weights]).double()
