"""A narrower copy of a part of a network: what can move inside is cut, its ends stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from dyncompile.analysis.dims.algebra import elastics
from dyncompile.analysis.dims.call import flat_types
from dyncompile.analysis.facts import Facts
from dyncompile.deploy.fold import fold
from dyncompile.program import MODES, Mode, Program
from dyncompile.resize import Resizer
from dyncompile.runtime.ops import DECISIONS
from dyncompile.selection import by_preference
from dyncompile.state import put_state, state_tensors
from dyncompile.torchlib import by_name, is_symbolic

aten = torch.ops.aten


class Narrowed(nn.Module):
    """Two static graphs over one state; `.train()` and `.eval()` choose."""

    def __init__(self, graphs: Mapping[Mode, fx.Graph], state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._graphs = dict(graphs)
        for name, value in state.items():
            put_state(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        """What the part of the network gives, from fewer channels inside."""
        graph = self._graphs["train" if self.training else "eval"]
        return fx.Interpreter(self, garbage_collect_values=False, graph=graph).run(x)  # pyright: ignore


def narrowed(
    program: Program, facts: Facts, ends: Mapping[Mode, tuple[str, str]], share: float
) -> Narrowed | str:
    """A copy of what lies between (entry, output) with `share` of its inner dims, or why there is none."""
    parts: dict[Mode, fx.Graph] = {}
    for mode in MODES:
        part = _part(program.graphs[mode], *ends[mode])
        if isinstance(part, str):
            return part
        parts[mode] = part
    sizes = _sizes(program, facts, parts["eval"], ends["eval"], share)
    if not sizes:
        return "no dim inside it can move"
    tensors, state = state_tensors(program.state), dict[str, Tensor]()
    graphs: dict[Mode, fx.Graph] = {}
    for mode, part in parts.items():
        dims = facts.dims
        Resizer(part, dims.graphs[mode], dims.state, sizes).run(dims.statistics, lambda node: None)
        graphs[mode], found = fold(part, None, tensors, program.captured)
        for name, value in found.items():
            state.setdefault(name, _own(value, tensors[name]))
    return Narrowed(graphs, state)


def _own(value: Tensor, source: Tensor) -> Tensor:
    copy = value.detach().clone(memory_format=torch.contiguous_format)
    return nn.Parameter(copy) if isinstance(source, nn.Parameter) else copy


def _part(graph: fx.Graph, entry: str, output: str) -> fx.Graph | str:
    """The nodes from `entry`, which becomes the input, to `output`; the batch size is read from the input."""
    nodes = by_name(graph)
    new, env = fx.Graph(), dict[fx.Node, fx.Node]()
    env[nodes[entry]] = start = new.placeholder(entry)
    start.meta = dict(nodes[entry].meta)
    wanted = _behind(nodes[output], nodes[entry])
    for node in wanted:
        if node.op == "placeholder" or node.target in DECISIONS:
            return f"it also reads `{node}`"
    members = set(wanted)
    for node in graph.nodes:
        if node in members:
            env[node] = _copied(node, new, env, start)
    new.output((env[nodes[output]],))
    return new


def _behind(output: fx.Node, entry: fx.Node) -> list[fx.Node]:
    """Everything that `output` needs, short of `entry`."""
    seen, todo = dict[fx.Node, None](), [output]
    while todo:
        node = todo.pop()
        if node is entry or node in seen:
            continue
        seen[node] = None
        todo += [] if _is_batch(node) else node.all_input_nodes
    return list(seen)


def _is_batch(node: fx.Node) -> bool:
    return node.target is aten.sym_size.int and is_symbolic(node.meta["val"])


def _copied(node: fx.Node, graph: fx.Graph, env: dict[fx.Node, fx.Node], start: fx.Node) -> fx.Node:
    if _is_batch(node):
        new = graph.call_function(aten.sym_size.int, (start, 0))
    else:
        new = graph.node_copy(node, env.__getitem__)
    new.meta = dict(node.meta)
    return new


def _sizes(
    program: Program, facts: Facts, part: fx.Graph, ends: tuple[str, str], share: float
) -> dict[str, Any]:
    """New sizes of the elastic dims that the part's parameters have and its ends do not."""
    reads = [str(node.target) for node in part.nodes if node.op == "get_attr"]
    inner = {name for read in reads for name in facts.elastics_of(read)}
    types = facts.dims.graphs["eval"].types
    outer = {
        e.name for end in ends for dims in flat_types(types.get(end)) for dim in dims for e in elastics(dim)
    }
    fixed = {*outer, *program.sized, *program.picked}
    sizes: dict[str, Any] = {}
    for one in by_preference(facts):
        name = one.dim.name
        if name in inner - fixed and not any(other in sizes for other in one.partners) and one.dim.size > 1:
            sizes[name] = max(1, round(one.dim.size * share))
    return sizes
