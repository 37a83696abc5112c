"""The source network as blocks, where decisions are taken, and what they act on: what the diagram draws.

Which choice acts on a block is read off the program, by the block's parameters: dims of them are sized or
picked, they are mixed from bases, what reads them may be skipped, or lies behind an exit. A decision stands
after the last block whose parameters have a part in what its decision net reads. No name is compared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx

from dyncompile.analysis.exits import find_leaves
from dyncompile.analysis.facts import analyze
from dyncompile.analysis.flow import Flow
from dyncompile.analysis.macs import evaluate
from dyncompile.analysis.skips import find_skips
from dyncompile.program import Choice, Domain
from dyncompile.report.blocks import Unit, operations, output_shape, state_read, units_of
from dyncompile.report.explanation import decider_of
from dyncompile.report.patterns import fold, template
from dyncompile.runtime import ops
from dyncompile.runtime.model import DynamicModel

SIZE, WIDTH, CHANNELS, SKIP, PATHS, KERNEL, EXIT = (
    "size",
    "width",
    "channels",
    "skip",
    "paths",
    "kernel",
    "exit",
)
HOWS: Mapping[str, str] = {
    SIZE: "input resized",
    WIDTH: "width sliced",
    CHANNELS: "channels kept one by one",
    SKIP: "branch skipped or scaled",
    PATHS: "one of several paths",
    KERNEL: "kernel mixed from bases",
    EXIT: "left out after an exit",
}
"""What a choice can do to a block, in words."""

Acts = Mapping[str, Mapping[str, None]]
"""Choice -> what it does, in the order of being found; for one parameter or one block."""


@dataclass(frozen=True, slots=True)
class Block:
    """A part of the network.

    Attributes:
        name: module path, or the branch's name.
        branch: whether it is added to what goes past it.
        shortcut: what is computed on the way past it, empty for the identity.
        operations: its contractions, in words.
        shape: sizes per sample of what comes out.
        stage: index of the run of one resolution that it belongs to.
        macs: share of the source's MACs, the shortcut's included.
        moved: the part of `macs` in layers that a choice acts on.
        notes: how, as the passes say it.
        count: how many blocks this one stands for.
    """

    name: str
    branch: bool
    shortcut: tuple[str, ...]
    operations: tuple[str, ...]
    shape: tuple[int, ...]
    stage: int
    macs: float
    moved: float
    notes: tuple[str, ...] = ()
    count: int = 1


@dataclass(frozen=True, slots=True)
class Decider:
    """Choices that are taken at one place, alike but for numbers in their names.

    Attributes:
        label: their names as one pattern.
        count: how many they are.
        after: how many blocks come before; 0 is the input.
        acts: index of a block -> keys of `HOWS`.
        columns: what is picked from, in words.
        by: who decides, in words.
        asked: whether a decision net reads the network there.
    """

    label: str
    count: int
    after: int
    acts: Mapping[int, tuple[str, ...]]
    columns: str
    by: str
    asked: bool


@dataclass(frozen=True, slots=True)
class Network:
    """Shapes of the inputs per sample, blocks in order, deciders in the order of where they stand."""

    inputs: tuple[tuple[int, ...], ...]
    blocks: tuple[Block, ...]
    deciders: tuple[Decider, ...]


def network_of(dyn: DynamicModel) -> Network:
    """The network that `dyn` was made from, with the decisions that passes put into it. Pure."""
    program = dyn.program
    source = replace(
        program, graphs=program.origin or program.graphs, choices={}, sized={}, picked={}, variants=None
    )
    graph, facts = source.graphs["eval"], analyze(source)
    flow = Flow.of(graph)
    units = units_of(graph, flow, facts)
    reads = [_reads(unit, flow) for unit in units]
    acts, notes = _acts(dyn), _notes(dyn)
    costs = {name: evaluate(cost, {}) / dyn.static_macs for name, cost in facts.macs.nodes.items()}
    blocks = [
        _block(unit, read, flow, costs, facts.stage_at, acts, notes)
        for unit, read in zip(units, reads, strict=True)
    ]
    inputs = [tuple(int(n or 0) for n in leaf.shape[1:]) for leaf in program.signature.leaves if leaf.shape]
    return Network(tuple(inputs), tuple(blocks), tuple(_deciders(dyn, reads, acts)))


def _reads(unit: Unit, flow: Flow) -> dict[fx.Node, list[str]]:
    """What each node of a block reads of the state."""
    nodes = [node for node in (*unit.past, *unit.nodes) if node in flow.sources]
    return {node: state_read(node, flow) for node in nodes}


def _block(
    unit: Unit,
    reads: Mapping[fx.Node, Sequence[str]],
    flow: Flow,
    costs: Mapping[str, float],
    stages: Mapping[str, int],
    acts: Mapping[str, Acts],
    notes: Mapping[str, Sequence[str]],
) -> Block:
    """Contractions without parameters (attention) move with the others of their block."""
    assert unit.end is not None
    names = [unit.name, *(name for read in reads.values() for name in read)]
    moving = [node for node, read in reads.items() if any(name in acts for name in read)]
    still = [node for node, read in reads.items() if read and node not in moving]
    cost = sum(costs.get(node.name, 0.0) for node in reads)
    return Block(
        name=unit.name,
        branch=unit.branch,
        shortcut=operations(unit.past, flow),
        operations=operations(unit.nodes, flow),
        shape=output_shape(unit.end),
        stage=stages.get(unit.end.name, 0),
        macs=cost,
        moved=cost - sum(costs.get(node.name, 0.0) for node in still) if moving else 0.0,
        notes=tuple(dict.fromkeys(note for name in names for note in notes.get(name, ()))),
    )


def _notes(dyn: DynamicModel) -> Mapping[str, Sequence[str]]:
    """What passes say of a place: by branch, or by parameter, whichever axis of it a site names."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for plan in dyn.plans:
        for site in plan.sites:
            found[site.name.partition("[")[0]].append(site.what)
    return found


# -- who acts on what -------------------------------------------------------------------------------


def _acts(dyn: DynamicModel) -> Mapping[str, Acts]:
    """Name of a parameter of the source -> who acts on it, and how."""
    found: defaultdict[str, defaultdict[str, dict[str, None]]] = defaultdict(lambda: defaultdict(dict))
    program, facts = dyn.program, dyn.facts
    for name in facts.parameters:
        for elastic in facts.elastics_of(name):
            if elastic in program.sized:
                found[name][program.sized[elastic].choice][WIDTH] = None
            if elastic in program.picked:
                found[name][program.picked[elastic].choice][CHANNELS] = None
        if program.variants is not None:
            found[name][program.variants.choice][SIZE] = None
    for plan in program.plans:
        for name, one in plan.synthesized.items():
            found[name][one.choice][KERNEL] = None
    for names, choice, how in _conditional(program.graphs["eval"]):
        for name in names:
            found[name][choice][how] = None
    return found


def _conditional(graph: fx.Graph) -> Iterator[tuple[list[str], str, str]]:
    """(state that is read, choice, how) of what does not run for every row."""
    for skip in find_skips(graph):
        how = SKIP if len(skip.alternatives) == 1 else PATHS
        yield _state(skip.body), skip.choice, how
    for leave in find_leaves(graph, deciding=True):
        yield _state(leave.rest), leave.choice, EXIT


def _state(nodes: Iterable[fx.Node]) -> list[str]:
    return [str(node.target) for node in nodes if node.op == "get_attr"]


# -- where decisions are taken ----------------------------------------------------------------------


def _deciders(
    dyn: DynamicModel, reads: Sequence[Mapping[fx.Node, Sequence[str]]], acts: Mapping[str, Acts]
) -> list[Decider]:
    """Choices by place and by what they are called but for numbers, in the order of their places."""
    state = [list(dict.fromkeys(name for names in read.values() for name in names)) for read in reads]
    first: dict[str, int] = {}
    for index, names in enumerate(state):
        for name in names:
            first.setdefault(name, index)
    together: defaultdict[tuple[int, str], list[Choice]] = defaultdict(list)
    for choice in dyn.choices.values():
        acted = [i for i, names in enumerate(state) if any(choice.name in acts.get(n, ()) for n in names)]
        place = _place(dyn, choice, first)
        after = min(acted, default=0) if place is None else place
        together[after, template(choice.name)].append(choice)
    made = [_decider(dyn, after, choices, state, acts) for (after, _), choices in together.items()]
    return sorted(made, key=lambda one: one.after)


def _place(dyn: DynamicModel, choice: Choice, first: Mapping[str, int]) -> int | None:
    """How many blocks come before what the decision net of `choice` reads; None where it has none."""
    if choice.name not in dyn.gated:
        return None
    program = dyn.program
    graphs = [program.graphs["eval"], *([program.variants.heads["eval"]] if program.variants else [])]
    nodes = [node for graph in graphs for node in graph.nodes if node.target is ops.decide]
    decide = next((node for node in nodes if node.args[1] == choice.name), None)
    if decide is None:
        return 0
    return max((first[name] + 1 for name in _above(decide) if name in first), default=0)


def _above(node: fx.Node) -> set[str]:
    """State that has a part in what a node reads."""
    todo, seen = [node], {node}
    while todo:
        for read in todo.pop().all_input_nodes:
            if read not in seen:
                seen.add(read)
                todo.append(read)
    return {str(node.target) for node in seen if node.op == "get_attr"}


def _decider(
    dyn: DynamicModel,
    after: int,
    choices: Sequence[Choice],
    state: Sequence[Sequence[str]],
    acts: Mapping[str, Acts],
) -> Decider:
    done: dict[int, tuple[str, ...]] = {}
    for index, names in enumerate(state):
        hows = [how for name in names for c in choices for how in acts.get(name, {}).get(c.name, ())]
        if hows:
            done[index] = tuple(dict.fromkeys(hows))
    by = list(dict.fromkeys(decider_of(dyn, choice) for choice in choices))
    return Decider(
        label=fold(choice.name for choice in choices),
        count=len(choices),
        after=after,
        acts=done,
        columns=_columns(choices),
        by=by[0] if len(by) == 1 else f"{by[0]} and {len(by) - 1} more",
        asked=choices[0].name in dyn.gated,
    )


def _columns(choices: Sequence[Choice]) -> str:
    one = choices[0]
    if one.domain in (Domain.ONE_HOT, Domain.SIMPLEX) and one.labels:
        return " / ".join(one.labels)
    total = sum(choice.width for choice in choices)
    words = {
        Domain.GAINS: "gain",
        Domain.BITS: "switch",
        Domain.MIXTURE: "coefficient",
        Domain.EXIT: "stop or go on",
    }
    word = words.get(one.domain, "column")
    return word if one.domain is Domain.EXIT else f"{total:,} {word}{'' if total == 1 else 's'}"
