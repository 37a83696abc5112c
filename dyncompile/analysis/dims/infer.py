"""Type inference: which dimensions of a program's parameters move together.

The training graph is walked first (it reaches every parameter), then the evaluation graph in the same
environment: it must add nothing, and every node where it does is reported.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from dyncompile.analysis.dims.algebra import Atom, Dim, Misaligned, size
from dyncompile.analysis.dims.call import (
    Call,
    Decompose,
    Findings,
    Rule,
    TensorType,
    Type,
    Unsupported,
    fixed_type,
    flat_types,
    meta,
    shape_of,
)
from dyncompile.analysis.dims.environment import Environment
from dyncompile.analysis.dims.rules import find_rule
from dyncompile.collector import paused_collector
from dyncompile.errors import RuleError
from dyncompile.program import Mode, Program, source_line
from dyncompile.state import CONSTANTS, GATES, state_tensors
from dyncompile.torchlib import is_composite, is_several, items, map_nodes, schema_of, tensors_in

_INFERENCE_ORDER: tuple[Mode, ...] = ("train", "eval")


@dataclass(frozen=True, slots=True)
class OperatorNote:
    """An operator that inference could not follow, at a node and source line."""

    operator: str
    node: str
    line: str
    reason: str


@dataclass(slots=True)
class Inference:
    """Raw result: types over one environment, before names are given to what is free."""

    env: Environment
    state: dict[str, TensorType]
    types: dict[Mode, dict[fx.Node, Type]] = field(default_factory=dict[Mode, dict[fx.Node, Type]])
    findings: dict[Mode, dict[fx.Node, Findings]] = field(default_factory=dict[Mode, dict[fx.Node, Findings]])
    unknown: list[OperatorNote] = field(default_factory=list[OperatorNote])
    gaps: list[OperatorNote] = field(default_factory=list[OperatorNote])
    disagreements: list[OperatorNote] = field(default_factory=list[OperatorNote])
    unread: list[str] = field(default_factory=list[str])


@paused_collector()
def infer(program: Program, order: tuple[Mode, ...] = _INFERENCE_ORDER) -> Inference:
    """Types of all graphs and parameters of a program.

    The result does not depend on `order` (property-tested).
    """
    env = Environment()
    tensors = state_tensors(program.state)
    result = Inference(env, _state_types(env, tensors))
    used: set[str] = set()
    for turn, mode in enumerate(order):
        before = env.watermark()
        walk = _Walk(result, program.graphs[mode])
        walk.run()
        result.types[mode], result.findings[mode] = walk.types, walk.findings
        used |= walk.used
        if turn:
            result.disagreements += _later_bindings(env, before, result.state)
    _freeze_unread(result, used)
    _freeze_decision_nets(result)
    return result


def _state_types(env: Environment, tensors: Mapping[str, Tensor]) -> dict[str, TensorType]:
    """Fresh dims for floating-point state, once per tensor object (ties share); the rest is fixed."""
    by_tensor: dict[int, TensorType] = {}
    for name, tensor in tensors.items():
        moves = tensor.is_floating_point() and not name.startswith(CONSTANTS)
        if id(tensor) not in by_tensor:
            by_tensor[id(tensor)] = tuple(map(env.fresh, tensor.shape)) if moves else fixed_type(tensor.shape)
    return {name: by_tensor[id(tensor)] for name, tensor in tensors.items()}


def _later_bindings(env: Environment, before: int, state: Mapping[str, TensorType]) -> list[OperatorNote]:
    """Nodes of a later graph that bound an atom which parameters already carried."""
    later = env.bound_since(before)
    carried = (
        {atom for dims in state.values() for dim in dims for atom in env.ancestry(dim)}
        if later
        else set[Atom]()
    )
    return [
        OperatorNote(
            "", node, line, "the evaluation graph constrains a dim that the training graph leaves free"
        )
        for atom, node, line in later
        if atom in carried
    ]


def _freeze_unread(result: Inference, used: set[str]) -> None:
    """State that no graph reads cannot be judged. Tied names share one type object and are read together."""
    read = {id(dims) for name, dims in result.state.items() if name in used}
    for name, dims in result.state.items():
        if id(dims) in read:
            continue
        if any(result.env.atoms(dim) for dim in dims):
            result.unread.append(name)
        for dim in dims:
            result.env.freeze(dim, "no captured graph reads this tensor")


def _freeze_decision_nets(result: Inference) -> None:
    """What only decision nets carry keeps its size; features that they read move with the network."""
    for atom, carriers in free_atoms(result).items():
        if all(name.startswith(f"{GATES}.") for name, _ in carriers):
            result.env.freeze((atom,), "it is part of a decision net")


class _Walk:
    """One pass over one graph."""

    def __init__(self, result: Inference, graph: fx.Graph, types: dict[fx.Node, Type] | None = None) -> None:
        self._result, self._graph = result, graph
        self.types: dict[fx.Node, Type] = types or {}
        self.findings: dict[fx.Node, Findings] = {}
        self.used: set[str] = set()
        self.returned: Type = None

    def run(self) -> None:
        for node in self._graph.nodes:
            with self._result.env.at(node.name, partial(source_line, node)):
                self._visit(node)

    def _visit(self, node: fx.Node) -> None:
        value = meta(node)
        if node.op == "placeholder":
            if node not in self.types and isinstance(value, Tensor):
                self.types[node] = fixed_type(shape_of(value))
        elif node.op == "get_attr":
            self.used.add(str(node.target))
            self.types[node] = self._result.state[str(node.target)]
        elif node.op == "output":
            self._output(node)
        elif node.target is operator.getitem:
            source, at = node.args
            several = self.types.get(source) if isinstance(source, fx.Node) else None
            self.types[node] = several[at] if isinstance(several, list) and isinstance(at, int) else None
        elif tensors_in(value):
            self._call(node, value)

    def _output(self, node: fx.Node) -> None:
        for source in node.all_input_nodes:
            with self._result.env.at(source.name, partial(source_line, source)):
                for dims in flat_types(self.types.get(source)):
                    for dim in dims:
                        self._result.env.freeze(dim, "it is part of the model's output")

    def _call(self, node: fx.Node, value: Any) -> None:
        call = Call(node, self._result.env, self.types)
        before = [dim for dims in call.tensors() for dim in dims]
        rule = find_rule(node.target)
        try:
            found = self._by_rule(call, rule)
        except (Misaligned, Unsupported) as error:
            found = self._frozen(call, before, value, str(error), known=rule is not None)
        except (
            LookupError,
            TypeError,
            ValueError,
        ) as error:  # a form of the operator that its rule did not expect
            reason = f"its rule fails: {error!r}"
            found = self._frozen(call, before, value, reason, known=True)
            self._result.gaps.append(OperatorNote(str(node.target), node.name, source_line(node), reason))
        self.types[node] = found
        self.findings[node] = call.findings
        if found is not None:
            self._check(call, found, value, before)

    def _by_rule(self, call: Call, rule: Rule | None) -> Type:
        """The type that an operator's rule gives, or the rules of its parts."""
        try:
            if rule is not None:
                return rule(call)
        except Decompose:
            pass
        if not is_composite(call.node.target):
            raise Unsupported("no rule")
        return self._decomposed(call)

    def _frozen(self, call: Call, before: list[Dim], value: Any, error: str, *, known: bool) -> Type:
        """Give up on a node: everything that it touches keeps its size."""
        name = str(call.node.target)
        reason = f"{name}: {error}" if known else f"no rule for the operator {name}"
        touched = any(call.env.atoms(dim) for dim in before)
        for dim in before:
            call.env.freeze(dim, reason)
        call.findings = Findings(unmodeled=True)
        if touched or not known:
            self._result.unknown.append(OperatorNote(name, call.node.name, source_line(call.node), reason))
        return _fixed_types(value)

    def _decomposed(self, call: Call) -> Type:
        """A composite operator without a rule: decompose it once and infer on its parts."""
        inputs = [n for n in call.node.all_input_nodes if isinstance(meta(n), Tensor)]
        graph = _decompose(call.node, inputs)
        placeholders = [n for n in graph.nodes if n.op == "placeholder"]
        types = {p: self.types[n] for p, n in zip(placeholders, inputs, strict=True)}
        inner = _Walk(self._result, graph, types)
        found = inner.run_inlined()
        call.accounted += [dim for dims in call.tensors() for dim in dims]
        for part in inner.findings.values():
            call.findings.contractions += part.contractions
            call.findings.normalized += part.normalized
            call.findings.unmodeled |= part.unmodeled
            if _takes_sizes(call.node.target):
                for rewrite in part.rewrites:
                    for dim in rewrite.when:
                        call.freeze(dim, f"{call.node.target} takes sizes and has no rule of its own")
        return found

    def run_inlined(self) -> Type:
        """Walk a sub-graph; its output is a value, not the model's output."""
        for node in self._graph.nodes:
            if node.op != "output":
                self._visit(node)
                continue
            found = [self.types.get(entry) for entry in items(node.args[0])]
            return found if is_several(node.args[0]) else found[0]
        return None

    def _check(self, call: Call, found: Type, value: Any, before: list[Dim]) -> None:
        """Sizes agree with the trace, and no input dim was forgotten: what was is frozen and reported."""
        values = tensors_in(value)
        typed = flat_types(found)
        name = str(call.node.target)
        for dims, one in zip(typed, values, strict=True):
            if tuple(map(size, dims)) != shape_of(one):
                raise RuleError(
                    f"the rule of {name} gives {dims} for shape {shape_of(one)}",
                    where=f"{call.node.name}: {source_line(call.node)}",
                    fix="report this operator and its arguments to dyncompile",
                )
        here = {atom for dim in before for atom in call.env.atoms(dim)}
        if not here:
            return
        seen = {atom for dims in (*typed, call.accounted) for dim in dims for atom in call.env.atoms(dim)}
        if here <= seen:
            return
        for atom in here - seen:
            call.env.freeze((atom,), f"the rule of {name} does not account for it")
        self._result.gaps.append(OperatorNote(name, call.node.name, source_line(call.node), "dim not typed"))


def _fixed_types(value: Any) -> Type:
    if is_several(value):
        return [_fixed_types(entry) for entry in items(value)]
    return fixed_type(shape_of(value)) if isinstance(value, Tensor) else None


def _takes_sizes(target: Any) -> bool:
    schema = schema_of(target)
    return schema is not None and any("SymInt" in str(a.type) for a in schema.arguments)


def _decompose(node: fx.Node, inputs: list[fx.Node]) -> fx.Graph:
    """The core operators that a composite stands for, traced on fake tensors of the stand-in shapes."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    def run(*tensors: Tensor) -> Any:
        given = dict(zip(inputs, tensors, strict=True))
        args, kwargs = map_nodes((node.args, dict(node.kwargs)), lambda n: given.get(n, meta(n)))
        assert callable(node.target)
        with torch.no_grad():
            return node.target(*args, **kwargs)

    with FakeTensorMode():
        fakes = [torch.empty(shape_of(meta(n)), dtype=meta(n).dtype) for n in inputs]
        return make_fx(run)(*fakes).graph


Carriers = list[tuple[str, int]]
"""(tensor name, axis) of all that carry a dim, in the state's order."""


def free_atoms(inference: Inference) -> dict[Atom, Carriers]:
    """Free atoms that state carries, and what carries them."""
    carriers: dict[Atom, Carriers] = {}
    for name, dims in inference.state.items():
        for axis, dim in enumerate(dims):
            for atom in inference.env.atoms(dim):
                carriers.setdefault(atom, []).append((name, axis))
    return carriers
