"""From an exported module to a plain graph: state under its own names, no guards, no wrapped regions, no baked devices."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from dyncompile.capture.literals import follow_device_and_dtype
from dyncompile.errors import CaptureError
from dyncompile.program import STATE_PREFIX

CONSTANTS = f"{STATE_PREFIX}.constants"
POLICY = "policy"

_DROPPED = ("_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range", "sym_constrain_range_for_size")
_KEPT_META = ("val", "nn_module_stack", "stack_trace")


def clean_graph(module: fx.GraphModule, state: nn.Module, owned: nn.Module) -> fx.Graph:
    """A graph whose inputs are (policy, *flat inputs) and whose `get_attr` targets are names in `state`.

    `state` gains what it lacks: the source's parameters and buffers under their names, captured constants as
    non-persistent buffers under ``dyn.constants``.
    """
    _adopt_state(state, owned)
    graph = fx.Graph()
    graph.placeholder(POLICY)
    env: dict[fx.Node, Any] = {}
    nodes = list(module.graph.nodes)
    for node in [n for n in nodes if n.op == "placeholder"]:
        env[node] = _copy(graph, node, env)
    for node in nodes:
        if node.op == "placeholder" or _is_dropped(node):
            continue
        if node.op == "output":
            flat = fx.node.map_arg(node.args[0], lambda n: env[n])
            graph.output(tuple(flat) if isinstance(flat, list | tuple) else (flat,))
        elif node.op == "get_attr":
            _copy_attribute(graph, module, node, env, state)
        else:
            _copy_call(graph, module, node, env)
    graph.eliminate_dead_code(_has_effect)
    follow_device_and_dtype(graph, state)
    return graph


def _is_dropped(node: fx.Node) -> bool:
    return node.op == "call_module" or getattr(node.target, "__name__", "").partition(".")[0] in _DROPPED


def _has_effect(node: fx.Node) -> bool:
    """Nodes that must stay though nobody reads them: in-place updates, mode switches, inputs."""
    if node.op in ("placeholder", "output"):
        return True
    schema = getattr(node.target, "_schema", None)
    return bool(schema and schema.is_mutable) or getattr(node.target, "__name__", "") in ("_enter_autocast", "_exit_autocast")


def _copy(graph: fx.Graph, node: fx.Node, env: dict[fx.Node, Any]) -> fx.Node:
    new = graph.node_copy(node, lambda n: env[n])
    new.meta = {key: node.meta[key] for key in _KEPT_META if key in node.meta}
    return new


def _copy_call(graph: fx.Graph, module: fx.GraphModule, node: fx.Node, env: dict[fx.Node, Any]) -> None:
    name = getattr(node.target, "__name__", "")
    if name.startswith("wrap_with_"):
        _inline(graph, module, node, env, name)
    elif node.target is operator.getitem and isinstance(env[node.args[0]], list | tuple):
        env[node] = env[node.args[0]][node.args[1]]
    else:
        env[node] = _copy(graph, node, env)


def _copy_attribute(
    graph: fx.Graph, module: fx.GraphModule, node: fx.Node, env: dict[fx.Node, Any], state: nn.Module
) -> None:
    value: Any = operator.attrgetter(str(node.target))(module)
    if isinstance(value, fx.GraphModule):
        return
    target = str(node.target)
    if not _holds(state, target):
        target = f"{CONSTANTS}.{target.replace('.', '_')}"
        put_state(state, target, value, persistent=False)
    new = graph.create_node("get_attr", target, name=node.name)
    new.meta = {key: node.meta[key] for key in _KEPT_META if key in node.meta}
    env[node] = new


def _inline(graph: fx.Graph, module: fx.GraphModule, node: fx.Node, env: dict[fx.Node, Any], name: str) -> None:
    """A wrapped region becomes plain nodes: no_grad as detached results, autocast as enter and exit."""
    at = next(i for i, a in enumerate(node.args) if isinstance(a, fx.Node) and a.op == "get_attr" and a not in env)
    region: Any = operator.attrgetter(str(node.args[at].target))(module)
    if name not in ("wrap_with_set_grad_enabled", "wrap_with_autocast"):
        raise CaptureError(f"a region of kind {name} cannot be captured", where=str(node.meta.get("stack_trace", "")))
    scope = None
    if name == "wrap_with_autocast":
        scope = graph.call_function(torch.amp.autocast_mode._enter_autocast, tuple(node.args[:at]))
    outputs = _inline_nodes(graph, module, region, [env[a] if isinstance(a, fx.Node) else a for a in node.args[at + 1 :]])
    if scope is not None:
        graph.call_function(torch.amp.autocast_mode._exit_autocast, (scope,))
    elif node.args[0] is False:
        outputs = [_detached(graph, out) for out in outputs]
    env[node] = outputs


def _inline_nodes(graph: fx.Graph, module: fx.GraphModule, region: fx.GraphModule, inputs: list[Any]) -> list[Any]:
    env: dict[fx.Node, Any] = {}
    pending = iter(inputs)
    for node in region.graph.nodes:
        if node.op == "placeholder":
            env[node] = next(pending)
        elif node.op == "output":
            flat = fx.node.map_arg(node.args[0], lambda n: env[n])
            return list(flat) if isinstance(flat, list | tuple) else [flat]
        elif node.op == "call_function" and not _is_dropped(node):
            _copy_call(graph, region, node, env)
    raise AssertionError("a graph without an output")


def _detached(graph: fx.Graph, value: Any) -> Any:
    if not isinstance(value, fx.Node) or not isinstance(value.meta.get("val"), Tensor):
        return value
    new = graph.call_function(torch.ops.aten.detach.default, (value,))
    new.meta = dict(value.meta)
    return new


# -- state ------------------------------------------------------------------------------------------


def _adopt_state(state: nn.Module, owned: nn.Module) -> None:
    """Register the source's parameters and buffers in `state`, tied names included, in the source's order."""
    for prefix, source in owned.named_modules(remove_duplicate=False):
        lead = f"{prefix}." if prefix else ""
        for name, parameter in source._parameters.items():
            if parameter is not None and not _holds(state, lead + name):
                put_state(state, lead + name, parameter)
        for name, buffer in source._buffers.items():
            if buffer is not None and not _holds(state, lead + name):
                put_state(state, lead + name, buffer, persistent=name not in source._non_persistent_buffers_set)


def put_state(state: nn.Module, name: str, value: Tensor, *, persistent: bool = True) -> None:
    """Register a parameter or buffer under a dotted name, creating the modules on the way."""
    *path, leaf = name.split(".")
    owner = state
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner._modules[part]
        assert owner is not None
    if isinstance(value, nn.Parameter):
        owner.register_parameter(leaf, value)
    else:
        owner.register_buffer(leaf, value, persistent=persistent)


def _holds(state: nn.Module, name: str) -> bool:
    *path, leaf = name.split(".")
    owner: nn.Module | None = state
    for part in path:
        owner = owner._modules.get(part) if owner is not None else None
    return owner is not None and (leaf in owner._parameters or leaf in owner._buffers)


