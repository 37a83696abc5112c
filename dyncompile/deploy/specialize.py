"""Specialize: fix the route, evaluate everything that depends on it alone, and drop what is then dead.

The result is a plain static `fx.GraphModule`: narrowed parameters under their own names, integer literals, no
decision left. `torch.compile`, `torch.export` and ONNX take it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from dyncompile.deploy.calling import adopt_signature
from dyncompile.deploy.fold import fold
from dyncompile.errors import RouteError
from dyncompile.gate import without_gates
from dyncompile.policies import Forced
from dyncompile.program import Mode, Program, Route
from dyncompile.resize import Resizer, restore_reads
from dyncompile.runtime import ops
from dyncompile.runtime.model import DynamicModel, as_dynamic
from dyncompile.runtime.steering import Group, group_rows, plan_route
from dyncompile.state import put_state, state_tensors
from dyncompile.torchlib import named_modules, transient_buffers


def specialize(dyn: DynamicModel, route: Route, *, mode: Mode = "eval") -> fx.GraphModule:
    """The static network that `route` stands for.

    It is called as the source is, without the arguments that were constants at capture. Where the route picks
    another size of an input, the static network takes the native size, too, and resizes it. Its parameters
    are copies: training it leaves `dyn` as it is.

    Args:
        dyn: any dynamic model.
        route: one row per choice (or equal rows); choices that it leaves out run at full capacity.
        mode: which graph to specialize. A static graph has one mode for good: `.train()` and `.eval()` on it
            change nothing.

    Raises:
        RouteError: an unknown choice, or rows that differ: a static network is one route.
    """
    dyn = as_dynamic(dyn)
    group = _single(dyn.program, route)
    sized = dyn if dyn.by_size is None else dyn.by_size.model_of(route)
    tensors, captured = state_tensors(sized.program.state), sized.program.captured
    graph, state = fold(_without_dead_dims(sized, group, mode), group, tensors, captured)
    owner = _owned(graph, state, sized)
    _resize_inputs(graph, sized.program, dyn.program)
    adopt_signature(graph, dyn.program.signature)
    static = fx.GraphModule(owner, graph, "Specialized")
    for name, module in named_modules(owner):  # fx copies buffers, but not which of them are saved
        if transient_buffers(module):
            transient_buffers(static.get_submodule(name)).update(transient_buffers(module))
    return static.train(mode == "train")


def _resize_inputs(graph: fx.Graph, sized: Program, program: Program) -> None:
    """Resize what comes at the native size and is read at another."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    wanted, given = sized.signature.leaves, program.signature.leaves
    for node, leaf, native in zip(inputs, wanted, given, strict=True):
        if leaf.shape == native.shape or leaf.shape is None:
            continue
        users = list(node.users)
        with graph.inserting_after(inputs[-1]):
            size = list(leaf.shape[-2:])
            new = graph.call_function(ops.RESIZE, (node, size, False))
        new.meta = dict(node.meta)
        for user in users:
            user.replace_input_with(node, new)


def _without_dead_dims(dyn: DynamicModel, group: Group, mode: Mode) -> fx.Graph:
    """The graph of one mode without decision nets; dims that nothing reads are narrowed to nothing."""
    graph = without_gates(dyn.program.graphs[mode])
    decided = {*dyn.program.sized, *dyn.program.picked}
    dead = {name: 0 for name in dyn.facts.dead if name not in decided}
    if not dead:
        return graph
    restore_reads(graph)
    dims, sized = dyn.facts.dims, dyn.program.sized
    sizes: dict[str, int | fx.Node] = {
        name: one.sizes[group.decisions[one.choice].index] for name, one in sized.items()
    }
    picks = {str(node.args[1]): node for node in graph.nodes if node.target is ops.active}
    counts: dict[str, fx.Node] = {}
    for name, index in picks.items():
        with graph.inserting_after(index):
            counts[name] = graph.call_function(ops.count, (index,))
        counts[name].meta["val"] = dims.elastic[name].dim.size
    resizer = Resizer(graph, dims.graphs[mode], dims.state, {**sizes, **counts, **dead}, picks)
    resizer.run(dims.statistics, lambda node: None)
    return graph


def _single(program: Program, route: Route) -> Group:
    rows = max((value.shape[0] for value in route.values()), default=1)
    planned = plan_route(Forced(route), program.choices, rows)
    groups = group_rows(planned, program.choices, rows, program.choices)
    if len(groups) != 1:
        raise RouteError(
            f"the route holds {len(groups)} different rows, a static network has one",
            fix="specialize once per distinct row: route[name][i : i + 1]",
        )
    return groups[0]


def _owned(graph: fx.Graph, state: Mapping[str, Tensor], dyn: DynamicModel) -> nn.Module:
    """A module tree with contiguous copies of the state that `graph` reads; tied state stays tied.

    What was a parameter is one, and only what `dyn` saves is saved.
    """
    sources, saved = state_tensors(dyn.program.state), set(dyn.state_dict())
    owner, copies = nn.Module(), dict[int, Tensor]()
    for name in dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "get_attr"):
        value, source = state[name], sources.get(name)
        if id(value) not in copies:
            own = value.detach().clone(memory_format=torch.contiguous_format)
            is_parameter = isinstance(source, nn.Parameter)
            copies[id(value)] = nn.Parameter(own, source.requires_grad) if is_parameter else own
        put_state(owner, name, copies[id(value)], persistent=name in saved or source is None)
    return owner
