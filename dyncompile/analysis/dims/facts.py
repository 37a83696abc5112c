"""What inference found, as frozen data.

Elastic dims with stable names, resolved types, reasons for what is static.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import fx

from dyncompile.analysis.dims.algebra import Atom, Dim, Elastic, Sum, elastics
from dyncompile.analysis.dims.call import Rewrite, Size, TensorType, Type, flat_types
from dyncompile.analysis.dims.infer import Carriers, Inference, OperatorNote, free_atoms, infer
from dyncompile.program import MODES, Mode, Program, source_line
from dyncompile.runtime import ops
from dyncompile.state import STATE_PREFIX
from dyncompile.torchlib import is_several, items


@dataclass(frozen=True, slots=True)
class Mixing:
    """An operator that makes masking an elastic dim differ from removing it."""

    how: str
    node: str
    line: str


@dataclass(frozen=True, slots=True)
class ElasticFacts:
    """One elastic dim.

    Attributes:
        dim: its name (``tensor[axis]`` of the first tensor that carries it) and full size.
        carriers: (tensor, axis) of every parameter and buffer that it is a part of.
        mixed: why it is not zero-equivalent; empty when masking its positions equals removing them.
        partners: elastic dims that it is multiplied with in some product; only one of them should move.
        outermost: whether it is the outermost factor wherever it is multiplied.
    """

    dim: Elastic
    carriers: tuple[tuple[str, int], ...]
    mixed: tuple[Mixing, ...]
    partners: frozenset[str]
    outermost: bool

    @property
    def zero_equivalent(self) -> bool:
        """Whether masking positions equals removing them (no norm, softmax or mean runs over the dim)."""
        return not self.mixed

    @property
    def maskable(self) -> bool:
        """Whether masked execution can stand for removing positions: layer norms can leave them out."""
        return all(one.how == "layer norm" for one in self.mixed)


@dataclass(frozen=True, slots=True)
class FrozenAxis:
    """A parameter axis in which nothing can move, and why."""

    tensor: str
    axis: int
    reason: str
    node: str
    line: str


@dataclass(frozen=True)
class GraphDims:
    """Types and findings of one graph by node name."""

    types: Mapping[str, Type]
    rewrites: Mapping[str, tuple[Rewrite, ...]]
    contractions: Mapping[str, tuple[tuple[Dim, ...], ...]]
    unmodeled: tuple[str, ...]

    @cached_property
    def elastics(self) -> Mapping[str, frozenset[str]]:
        """Node name -> names of the elastic dims of its values."""
        return {
            node: frozenset(e.name for dims in flat_types(found) for dim in dims for e in elastics(dim))
            for node, found in self.types.items()
        }


@dataclass(frozen=True, slots=True)
class DimFacts:
    """Dimension types of a program."""

    elastic: Mapping[str, ElasticFacts]
    state: Mapping[str, TensorType]
    graphs: Mapping[Mode, GraphDims]
    statistics: frozenset[str]
    unread: tuple[str, ...]
    frozen: tuple[FrozenAxis, ...]
    unknown: tuple[OperatorNote, ...]
    gaps: tuple[OperatorNote, ...]
    disagreements: tuple[OperatorNote, ...]


def dim_facts(program: Program) -> DimFacts:
    """Infer the dimension types of `program` and resolve them."""
    inference = infer(program)
    free = free_atoms(inference)
    names = _names(inference, free)
    resolver = _Resolver(inference, names)
    state = {name: resolver.tensor(dims) for name, dims in inference.state.items()}
    graphs: dict[Mode, GraphDims] = {mode: _graph_dims(inference, mode, resolver) for mode in MODES}
    return DimFacts(
        elastic=_elastic_facts(inference, free, names, resolver, state),
        state=state,
        graphs=graphs,
        statistics=_statistics(inference, program),
        unread=tuple(inference.unread),
        frozen=_frozen_axes(inference, program),
        unknown=_once(inference.unknown),
        gaps=_once(inference.gaps),
        disagreements=_once(inference.disagreements),
    )


def _once(notes: list[OperatorNote]) -> tuple[OperatorNote, ...]:
    """Both graphs tell the same story: keep one note per operator and line."""
    return tuple({(n.operator, n.line or n.node): n for n in reversed(notes)}.values())[::-1]


def _names(inference: Inference, free: Mapping[Atom, Carriers]) -> dict[Any, Elastic]:
    """A stable name for each free atom.

    The first tensor and axis that carry it, with an ordinal inside products.
    """
    found: dict[Any, Elastic] = {}
    for atom, carriers in free.items():
        tensor, axis = carriers[0]
        inside = inference.env.atoms(inference.state[tensor][axis])
        ordinal = f".{inside.index(atom)}" if len(inside) > 1 else ""
        found[atom] = Elastic(f"{tensor}[{axis}]{ordinal}", atom.size)
    return found


class _Resolver:
    """Replaces atoms by elastic dims, or by their size where no parameter carries them."""

    def __init__(self, inference: Inference, names: Mapping[Any, Elastic]) -> None:
        self._env, self._names = inference.env, names

    def dim(self, dim: Dim) -> Dim:
        return tuple(self._factor(factor) for factor in self._env.normal(dim))

    def _factor(self, factor: Any) -> Any:
        if isinstance(factor, Sum):
            return Sum(tuple(self.dim(segment) for segment in factor.segments))
        if isinstance(factor, int) or not hasattr(factor, "serial"):
            return factor
        return self._names.get(factor, factor.size)

    def tensor(self, dims: TensorType) -> TensorType:
        return tuple(map(self.dim, dims))

    def type(self, found: Type) -> Type:
        if isinstance(found, list):
            return [self.type(part) for part in found]
        return None if found is None else self.tensor(found)

    def literal(self, value: Any) -> Any:
        if isinstance(value, Size):
            return Size(self.dim(value.dim), value.old)
        return [self.literal(entry) for entry in items(value)] if is_several(value) else value

    def rewrite(self, one: Rewrite) -> Rewrite:
        arguments = {name: self.literal(value) for name, value in one.arguments.items()}
        return Rewrite(arguments, tuple(map(self.dim, one.when)), one.target)


def _graph_dims(inference: Inference, mode: Mode, resolver: _Resolver) -> GraphDims:
    findings = inference.findings[mode]
    kept = {n.name: [resolver.rewrite(r) for r in f.rewrites] for n, f in findings.items() if f.rewrites}
    return GraphDims(
        types={node.name: resolver.type(found) for node, found in inference.types[mode].items()},
        rewrites={
            name: tuple(r for r in rewrites if any(elastics(dim) for dim in r.when))
            for name, rewrites in kept.items()
            if any(elastics(dim) for r in rewrites for dim in r.when)
        },
        contractions={
            node.name: tuple(resolver.tensor(dims) for dims in f.contractions)
            for node, f in findings.items()
            if f.contractions
        },
        unmodeled=tuple(node.name for node, f in findings.items() if f.unmodeled),
    )


def _elastic_facts(
    inference: Inference,
    free: Mapping[Atom, Carriers],
    names: Mapping[Any, Elastic],
    resolver: _Resolver,
    state: Mapping[str, TensorType],
) -> dict[str, ElasticFacts]:
    mixed = _mixed(inference, resolver)
    partners, inner = _products(state)
    return {
        dim.name: ElasticFacts(
            dim=dim,
            carriers=tuple(carriers),
            mixed=tuple(mixed.get(dim.name, {}).values()),
            partners=frozenset(partners.get(dim.name, ())),
            outermost=dim.name not in inner,
        )
        for dim, carriers in ((names[atom], found) for atom, found in free.items())
    }


def _mixed(inference: Inference, resolver: _Resolver) -> dict[str, dict[str, Mixing]]:
    """Elastic name -> operators that normalize over it, each kind and line once."""
    out: dict[str, dict[str, Mixing]] = {}
    for findings in inference.findings.values():
        for node, found in findings.items():
            for dim, how in found.normalized:
                line = source_line(node)
                for elastic in elastics(resolver.dim(dim)):
                    out.setdefault(elastic.name, {}).setdefault(
                        line or node.name, Mixing(how, node.name, line)
                    )
    return out


def _products(state: Mapping[str, TensorType]) -> tuple[dict[str, set[str]], set[str]]:
    """(elastic name -> names it is multiplied with, names that somewhere are not the outermost)."""
    partners: dict[str, set[str]] = {}
    inner: set[str] = set()
    for dims in state.values():
        for product in (part for dim in dims for part in _parts(dim)):
            names = [{e.name for e in elastics((factor,))} for factor in product]
            for i, own in enumerate(names):
                others = set[str]().union(*names[:i], *names[i + 1 :])
                for name in own:
                    partners.setdefault(name, set()).update(others - {name})
                if any(names[:i]):
                    inner |= own
    return partners, inner


def _parts(dim: Dim) -> Iterator[Dim]:
    """`dim` and every product nested in its sums."""
    yield dim
    for factor in dim:
        if isinstance(factor, Sum):
            for segment in factor.segments:
                yield from _parts(segment)


def _statistics(inference: Inference, program: Program) -> frozenset[str]:
    """Names of the source's running statistics, also where norms read private copies of them."""
    found: set[str] = set()
    for mode, findings in inference.findings.items():
        by_name: dict[str, fx.Node] = {n.name: n for n in program.graphs[mode].nodes}
        for one in findings.values():
            for name in one.statistics:
                found |= {read for read in _reads(by_name[name]) if not read.startswith(f"{STATE_PREFIX}.")}
    return frozenset(found)


def _reads(node: fx.Node) -> set[str]:
    """State that a value is read from, directly or narrowed or picked."""
    if node.op == "get_attr":
        return {str(node.target)}
    chosen = node.target in (ops.pick, ops.prefix, ops.take)
    return {name for source in node.all_input_nodes for name in _reads(source)} if chosen else set()


def _frozen_axes(inference: Inference, program: Program) -> tuple[FrozenAxis, ...]:
    """Parameter axes of at least two positions in which nothing is free, with the first reason."""
    out: list[FrozenAxis] = []
    for name, _ in program.state.named_parameters():
        for axis, dim in enumerate(inference.state[name]):
            if not dim or inference.env.atoms(dim):
                continue
            for freeze in inference.env.reasons(dim)[:1]:
                out.append(FrozenAxis(name, axis, freeze.reason, freeze.node, freeze.line))
    return tuple(out)
