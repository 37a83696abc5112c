"""What there is to say about a dynamic model, as data: all renderings of `explain` read this alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from dyncompile.analysis.exits import find_leaves
from dyncompile.analysis.facts import Facts
from dyncompile.analysis.macs import covered, evaluate
from dyncompile.analysis.skips import Alternative, Skip, find_skips
from dyncompile.gate import Gate
from dyncompile.plan import Plan, Site
from dyncompile.policies import Full, Policy, Smallest
from dyncompile.program import Choice, Domain, Program
from dyncompile.report.patterns import fold, patterns, template
from dyncompile.runtime.model import DynamicModel
from dyncompile.runtime.steering import plan_route


@dataclass(frozen=True, slots=True)
class Source:
    """The network before any pass: elements of its parameters, MACs per sample, what was found in it."""

    parameters: int
    macs: float
    elastic_dims: int
    branches: int


@dataclass(frozen=True, slots=True)
class PassSummary:
    """One entry of the history, and how many places it took and left."""

    spec: str
    sites: int
    rejections: int


@dataclass(frozen=True, slots=True)
class Column:
    """One setting of a choice with all others at full: shares of the source's MACs and parameters."""

    label: str
    macs: float
    parameters: float


@dataclass(frozen=True, slots=True)
class ChoiceSummary:
    """A choice, how many sites it decides, who decides, and what each of its columns costs.

    `decided` is "policy", or names the value that the choice's decision net reads.
    """

    name: str
    domain: str
    sites: int
    decided: str
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class SiteGroup:
    """Sites of one choice that differ in numbers only and are acted on in the same way."""

    pattern: str
    choice: str
    what: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReasonGroup:
    """Places that are left alone for one reason; `line` is the first known source line."""

    reason: str
    line: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UnknownOperator:
    """An operator that inference could not follow, and the parameter axes that it froze."""

    operator: str
    line: str
    reason: str
    froze: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Coverage:
    """Shares in [0, 1] of the source's parameters and MACs: what could move, and what a choice does move."""

    elastic_parameters: float
    elastic_macs: float
    controlled_parameters: float
    controlled_macs: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything that `explain` says.

    Attributes:
        smallest_macs: share of the source's MACs with every choice at its cheapest.
        decision_macs: MACs per sample of the decision nets, on top of the path.
        stored_parameters: elements of all parameters, those that passes inserted included.
        active_parameters: elements that the path reads with every choice at full, and at its cheapest.
        rejections: what the passes looked at and left alone.
        static: other parameter axes that nothing can resize.
        unmodeled: operator -> number of nodes whose cost is unknown and in no number here.
        refusals: adds that are no removable residual branch.
    """

    source: Source
    passes: tuple[PassSummary, ...]
    coverage: Coverage
    choices: tuple[ChoiceSummary, ...]
    smallest_macs: float
    decision_macs: float
    stored_parameters: int
    active_parameters: tuple[float, float]
    sites: tuple[SiteGroup, ...]
    rejections: tuple[ReasonGroup, ...]
    static: tuple[ReasonGroup, ...]
    unknown: tuple[UnknownOperator, ...]
    unmodeled: Mapping[str, int]
    disagreements: tuple[ReasonGroup, ...]
    refusals: tuple[ReasonGroup, ...]
    notes: tuple[str, ...]


def explain(dyn: DynamicModel) -> Explanation:
    """Collect the explanation of a dynamic model. Pure: the model is only read."""
    facts, plans = dyn.facts, dyn.plans
    sites = [site for plan in plans for site in plan.sites]
    smallest = float(dyn.macs(plan_route(Smallest(), dyn.choices, 1))[0])
    skips = find_skips(dyn.program.graphs["eval"])
    return Explanation(
        source=_source(dyn),
        passes=tuple(
            PassSummary(spec, len(plan.sites), len(plan.rejections))
            for spec, plan in zip(dyn.history, plans, strict=True)
        ),
        coverage=_coverage(facts, dyn.program, skips),
        choices=tuple(_choice(dyn, choice, sites, skips) for choice in dyn.choices.values()),
        smallest_macs=_share(smallest, dyn.static_macs),
        decision_macs=dyn.decision_macs,
        stored_parameters=dyn.stored_parameters,
        active_parameters=(_active(dyn, Full()), _active(dyn, Smallest())),
        sites=_site_groups(sites),
        rejections=_grouped((r.reason, r.line, r.name) for plan in plans for r in plan.rejections),
        static=_grouped(_static_axes(facts, plans)),
        unknown=_unknown(facts),
        unmodeled=_counted(facts.macs.unmodeled.values()),
        disagreements=_grouped(
            (note.reason, note.line, note.node) for note in (*facts.dims.gaps, *facts.dims.disagreements)
        ),
        refusals=_grouped((r.reason, r.line or "", r.name) for r in facts.regions.refusals),
        notes=dyn.program.notes,
    )


def _active(dyn: DynamicModel, policy: Policy) -> float:
    return float(dyn.active_parameters(plan_route(policy, dyn.choices, 1))[0])


def _source(dyn: DynamicModel) -> Source:
    facts = dyn.facts
    return Source(
        dyn.source_parameters, dyn.static_macs, len(facts.dims.elastic), len(facts.regions.branches)
    )


def _coverage(facts: Facts, program: Program, skips: Sequence[Skip]) -> Coverage:
    macs = evaluate(facts.macs.path, {})
    total = sum(facts.parameters.values())
    moving = {*program.sized, *program.picked}
    skipped = {node for skip in skips for node in skip.body}
    skipped |= {node for leave in find_leaves(program.graphs["eval"]) for node in leave.rest}
    names, reads = {n.name for n in skipped}, {str(n.target) for n in skipped if n.op == "get_attr"}
    controlled = sum(
        n for name, n in facts.parameters.items() if name in reads or moving & set(facts.elastics_of(name))
    )
    costs = facts.macs.nodes.items()
    decided = sum(evaluate(cost, {}) if node in names else covered(cost, moving) for node, cost in costs)
    if program.variants is not None:  # the size of its input moves all that a network computes
        decided = macs
    return Coverage(
        elastic_parameters=facts.covered_parameters,
        elastic_macs=_share(covered(facts.macs.path, facts.dims.elastic), macs),
        controlled_parameters=_share(controlled, total),
        controlled_macs=_share(decided, macs),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


# -- choices and sites ------------------------------------------------------------------------------


def _choice(dyn: DynamicModel, choice: Choice, sites: Iterable[Site], skips: Sequence[Skip]) -> ChoiceSummary:
    return ChoiceSummary(
        name=choice.name,
        domain=choice.domain.value,
        sites=sum(site.choice == choice.name for site in sites),
        decided=decider_of(dyn, choice),
        columns=tuple(_columns(dyn, choice, skips)),
    )


def decider_of(dyn: DynamicModel, choice: Choice) -> str:
    """Who decides, in words: ``policy``, or what decides and which value it reads."""
    gate = next((plan.gates[choice.name] for plan in dyn.plans if choice.name in plan.gates), None)
    return _decided(dyn, choice) if gate is None else _gate(gate)


def _decided(dyn: DynamicModel, choice: Choice) -> str:
    """Who decides a choice that no gate in the graphs decides."""
    said = next((plan.deciders[choice.name] for plan in dyn.plans if choice.name in plan.deciders), None)
    if said is not None:
        return said
    variants = dyn.program.variants
    if variants is None or choice.name != variants.choice or choice.name not in dyn.gated:
        return "policy"
    leaf = dyn.program.signature.leaves[variants.image]
    return f"net on {leaf.path} [{'x'.join(map(str, (leaf.shape or ())[1:]))}]"


def _gate(gate: Gate) -> str:
    before = f", before {gate.point.branch}" if gate.point.branch else ""
    return f"gate on {gate.point.name} [{'x'.join(map(str, gate.point.shape))}]{before}"


def _columns(dyn: DynamicModel, choice: Choice, skips: Sequence[Skip]) -> Iterator[Column]:
    """Every column of a one-hot choice; the two ends of any other."""
    whole = dyn.facts.narrowed_numel({})
    if choice.domain is Domain.SIMPLEX:
        yield from _alternatives(dyn, choice)
        return
    if choice.domain is not Domain.ONE_HOT:
        left = _share(_needed(dyn, choice, skips), whole)
        for label, row, share in (("smallest", choice.smallest, left), ("full", choice.full, 1.0)):
            yield Column(label, _macs_share(dyn, choice, row), share)
        return
    for i in range(choice.width):
        widths = {name: s.sizes[i] for name, s in dyn.program.sized.items() if s.choice == choice.name}
        label = choice.labels[i] if choice.labels else str(i)
        parameters = _share(dyn.facts.narrowed_numel(widths), whole)
        yield Column(label, _macs_share(dyn, choice, choice.row(i)), parameters)


def _alternatives(dyn: DynamicModel, choice: Choice) -> Iterator[Column]:
    """Every alternative alone; parameters are those of the path."""
    whole = float(dyn.active_parameters(dyn.route({}))[0])
    for i in range(choice.width):
        route = {**dyn.route({}), choice.name: torch.tensor([choice.row(i)])}
        share = _share(float(dyn.active_parameters(route)[0]), whole)
        label = choice.labels[i] if choice.labels else str(i)
        yield Column(label, _macs_share(dyn, choice, choice.row(i)), share)


def _needed(dyn: DynamicModel, choice: Choice, skips: Sequence[Skip]) -> int:
    """Parameter elements that are left where nothing is on: no body of a branch, one block of channels."""
    picked = {name: one.block for name, one in dyn.program.picked.items() if one.choice == choice.name}
    own = [one for skip in skips if skip.choice == choice.name for one in skip.alternatives]
    bodies = [one.body for one in own if not _is_on(one, choice.smallest)]
    bodies += [one.rest for one in find_leaves(dyn.program.graphs["eval"]) if one.choice == choice.name]
    reads = {str(node.target) for body in bodies for node in body if node.op == "get_attr"}
    return dyn.facts.narrowed_numel(picked) - sum(dyn.facts.parameters.get(name, 0) for name in reads)


def _is_on(one: Alternative, row: tuple[float, ...]) -> bool:
    return sum(a * b for a, b in zip(row, one.condition[1], strict=True)) != 0


def _macs_share(dyn: DynamicModel, choice: Choice, row: tuple[float, ...]) -> float:
    route = {**dyn.route({}), choice.name: torch.tensor([row])}
    return _share(float(dyn.macs(route)[0]), dyn.static_macs)


def _site_groups(sites: Iterable[Site]) -> tuple[SiteGroup, ...]:
    """Sites by what is done there; choices that differ in numbers only are put together."""
    alike: dict[tuple[str, str], list[Site]] = {}
    for site in sites:
        alike.setdefault((template(site.choice), site.what), []).append(site)
    return tuple(
        SiteGroup(found.text, fold(s.choice for s in group if s.name in found.names), what, found.names)
        for (_, what), group in alike.items()
        for found in patterns(site.name for site in group)
    )


# -- reasons ----------------------------------------------------------------------------------------


def _grouped(found: Iterable[tuple[str, str, str]]) -> tuple[ReasonGroup, ...]:
    """(reason, source line, name) by reason; reasons that differ in numbers only are one."""
    alike: dict[str, list[tuple[str, str, str]]] = {}
    for one in found:
        alike.setdefault(template(one[0]), []).append(one)
    return tuple(
        ReasonGroup(
            reason=fold(reason for reason, _, _ in group),
            line=next((line for _, line, _ in group if line), ""),
            names=tuple(dict.fromkeys(name for _, _, name in group)),
        )
        for group in alike.values()
    )


def _static_axes(facts: Facts, plans: Iterable[Plan]) -> Iterator[tuple[str, str, str]]:
    """Frozen axes that no rejection and no unknown operator speaks of."""
    said = {(r.name, r.reason) for plan in plans for r in plan.rejections}
    unknown = {note.reason for note in facts.dims.unknown}
    for axis in facts.dims.frozen:
        if (axis.tensor, axis.reason) not in said and axis.reason not in unknown:
            yield axis.reason, axis.line, f"{axis.tensor}[{axis.axis}]"


def _unknown(facts: Facts) -> tuple[UnknownOperator, ...]:
    """An operator may be met at many lines; each note names the axes that were frozen there."""
    frozen = facts.dims.frozen
    return tuple(
        UnknownOperator(
            note.operator,
            note.line,
            note.reason,
            tuple(f"{a.tensor}[{a.axis}]" for a in frozen if (a.reason, a.line) == (note.reason, note.line)),
        )
        for note in facts.dims.unknown
    )


def _counted(names: Iterable[str]) -> dict[str, int]:
    out: dict[str, int] = {}
    for name in names:
        out[name] = out.get(name, 0) + 1
    return out
