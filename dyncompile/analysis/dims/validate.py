"""Are the types right? Run a program at arbitrary widths, check every shape, compare slicing with masking.

Shapes that agree at one ratio prove little: use independent random widths per elastic dim. And shapes alone
are not enough: where a dim is zero-equivalent, a network with masked parameters must compute what the sliced
one does.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from dyncompile.analysis.dims.algebra import Widths, active, resized
from dyncompile.analysis.dims.call import Type, flat_types
from dyncompile.analysis.facts import Facts
from dyncompile.errors import ContractError
from dyncompile.program import Mode, Program, copy_graph
from dyncompile.resize import Resizer
from dyncompile.state import state_tensors
from dyncompile.torchlib import tensors_in


def random_widths(facts: Facts, seed: int, *, only: Iterable[str] | None = None) -> dict[str, int]:
    """An independent uniformly random width for every elastic dim (or for those in `only`)."""
    generator = random.Random(seed)
    names = sorted(facts.dims.elastic if only is None else only)
    return {name: generator.randint(1, facts.dims.elastic[name].dim.size) for name in names}


def zero_equivalent(facts: Facts) -> list[str]:
    """Elastic dims for which masking is the same as removing."""
    return [name for name, one in facts.dims.elastic.items() if one.zero_equivalent]


def narrowed_graph(program: Program, facts: Facts, widths: Widths, mode: Mode) -> fx.Graph:
    """The graph of `mode` at fixed widths; it still reads the full state."""
    graph = copy_graph(program.graphs[mode])
    resizer = Resizer(graph, facts.dims.graphs[mode], facts.dims.state, widths)
    resizer.run(facts.dims.statistics, lambda node: None)
    return graph


def run_narrowed(
    program: Program, facts: Facts, widths: Widths, flat: Sequence[Any], mode: Mode = "eval"
) -> tuple[Any, ...]:
    """Flat outputs at the given widths; raises ContractError where a shape is not what its type says."""
    graph = narrowed_graph(program, facts, widths, mode)
    rows = program.signature.rows(flat)
    checker = _ShapeChecker(program.state, graph, facts.dims.graphs[mode].types, widths, rows)
    return checker.run(None, *flat)


def run_masked(program: Program, facts: Facts, widths: Widths, flat: Sequence[Any]) -> tuple[Any, ...]:
    """Flat outputs of the full-width evaluation graph with the removed positions of all state set to zero."""
    masked = {
        name: _masked(tensor, name, facts, widths) for name, tensor in state_tensors(program.state).items()
    }
    graph = program.graphs["eval"]
    return _Substituted(program.state, graph, masked).run(None, *flat)


def _masked(tensor: Tensor, name: str, facts: Facts, widths: Widths) -> Tensor:
    out = tensor.detach()
    if name.endswith("running_var"):
        return out  # a zero variance is not a removed channel: its affine weight is masked already
    for axis, dim in enumerate(facts.dims.state[name]):
        if resized(dim, widths):
            mask = torch.zeros(tensor.shape[axis], dtype=torch.bool)
            mask[facts.kept(name, axis, widths)] = True
            shape = [-1 if i == axis else 1 for i in range(tensor.dim())]
            out = torch.where(mask.view(shape), out, torch.zeros((), dtype=out.dtype))
    return out


class _Substituted(fx.Interpreter):
    """Interprets a graph with other tensors in place of some state."""

    def __init__(self, state: nn.Module, graph: fx.Graph, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(state, graph=graph)  # pyright: ignore
        self._tensors = tensors

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return (
            self._tensors.get(str(target))
            if str(target) in self._tensors
            else super().get_attr(target, args, kwargs)
        )


class _ShapeChecker(fx.Interpreter):
    """Interprets a graph and compares every tensor's shape with the active size of its type."""

    def __init__(
        self, state: nn.Module, graph: fx.Graph, types: Mapping[str, Type], widths: Widths, rows: int
    ) -> None:
        super().__init__(state, graph=graph)  # pyright: ignore
        self._types, self._widths, self._rows = types, widths, rows

    def run_node(self, n: fx.Node) -> Any:
        result: Any = super().run_node(n)
        found = self._types.get(n.name)
        if n.op != "call_function" or found is None:
            return result
        for dims, value in zip(flat_types(found), tensors_in(result), strict=True):
            expected = [active(dim, self._widths, self._rows) for dim in dims]
            if list(value.shape) != expected:
                raise ContractError(
                    f"node {n.name} has shape {list(value.shape)}, its type says {expected}",
                    where=str(n.target),
                )
        return result
