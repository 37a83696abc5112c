"""What passes have in common when they choose elastic dims."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from dyncompile.analysis.dims.algebra import elastics, size
from dyncompile.analysis.dims.call import flat_types
from dyncompile.analysis.dims.facts import ElasticFacts
from dyncompile.analysis.facts import Facts
from dyncompile.analysis.macs import evaluate
from dyncompile.analysis.points import Point
from dyncompile.analysis.regions import Branch
from dyncompile.errors import SpecError
from dyncompile.plan import Rejection
from dyncompile.program import MODES, Mode, Program
from dyncompile.runtime import ops
from dyncompile.runtime.rows import batch_axis


@dataclass(frozen=True, slots=True)
class Names:
    """Regular expressions that are searched in names; an empty one says nothing.

    Raises:
        SpecError: one is no regular expression.
    """

    include: str = ""
    exclude: str = ""

    def __post_init__(self) -> None:
        for pattern in (self.include, self.exclude):
            compiled(pattern)

    def reason_against(self, name: str) -> str | None:
        """Why a name is left out; None where it is not."""
        if self.include and not re.search(self.include, name):
            return f"not included by {self.include!r}"
        if self.exclude and re.search(self.exclude, name):
            return f"excluded by {self.exclude!r}"
        return None


def compiled(pattern: str) -> re.Pattern[str]:
    """A regular expression. Raises SpecError where it is none."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise SpecError(f"{pattern!r} is not a regular expression: {error}") from None


def reason_against(
    one: ElasticFacts, chosen: Sequence[ElasticFacts], program: Program, facts: Facts, names: Names
) -> str | None:
    """Why no further choice can move an elastic dim, whatever the method; None where one can."""
    name = one.dim.name
    if name in facts.dead:
        return "nothing reads it: specialized networks leave it out"
    if name in program.sized:
        return f"choice {program.sized[name].choice!r} sizes it already"
    if name in program.picked:
        return f"choice {program.picked[name].choice!r} picks its positions already"
    if reason := names.reason_against(name):
        return reason
    moving = (*(other.dim.name for other in chosen), *program.sized, *program.picked)
    partner = next((other for other in moving if other in one.partners), None)
    return None if partner is None else f"it is multiplied with {partner}, which moves instead"


def by_preference(facts: Facts) -> list[ElasticFacts]:
    """Outermost factors first (what they keep is contiguous), then by the parameters that they touch."""

    def weight(one: ElasticFacts) -> tuple[bool, int]:
        return not one.outermost, -sum(facts.parameters.get(tensor, 0) for tensor, _ in one.carriers)

    return sorted(facts.dims.elastic.values(), key=weight)


def stream_dims(facts: Facts) -> set[str]:
    """Elastic dims of the values that residual branches start from."""
    types = facts.dims.graphs["eval"].types
    entries = [dims for branch in facts.regions.branches for dims in flat_types(types.get(branch.entry))]
    return {e.name for dims in entries for dim in dims for e in elastics(dim)}


def frozen_tensors(facts: Facts) -> Iterator[Rejection]:
    """Tensors of which no axis can move, with the reason of their longest axis."""
    for tensor in facts.parameters:
        axes = [axis for axis in facts.dims.frozen if axis.tensor == tensor]
        if axes and not facts.elastics_of(tensor):
            longest = max(axes, key=lambda axis: size(facts.dims.state[tensor][axis.axis]))
            yield Rejection(tensor, longest.reason, longest.line)


Ends = Mapping[Mode, tuple[str, str]]
"""(exit, output) of a residual branch in each graph, by node name."""


def branch_ends(branch: Branch, program: Program, facts: Facts) -> Ends | str:
    """Where a branch ends in both graphs, or why a decision cannot be put there."""
    partner = facts.points.partners.get(branch.exit)
    if partner is None:
        return f"`{branch.exit}` has no counterpart in the training graph"
    exits = {
        mode: program.nodes[mode][name] for mode, name in zip(MODES, (partner, branch.exit), strict=True)
    }
    operands = [getattr(operand, "name", "") for operand in exits["eval"].args]
    place = operands.index(branch.output)
    outputs = {mode: exit.args[place] for mode, exit in exits.items()}
    for output in outputs.values():
        if isinstance(output, fx.Node) and output.target in (ops.gain, ops.mix):
            return f"choice {output.args[1].args[1]!r} decides on it already"  # pyright: ignore
    ends: dict[Mode, tuple[str, str]] = {mode: (exits[mode].name, str(outputs[mode])) for mode in MODES}
    types = [facts.dims.graphs[mode].types for mode in MODES]
    for found, (exit, output) in zip(types, ends.values(), strict=True):
        summed, added = found.get(exit), found.get(output)
        both = isinstance(summed, tuple) and isinstance(added, tuple) and len(summed) == len(added)
        if not both or batch_axis(added) is None or batch_axis(added) != batch_axis(summed):
            return f"what it adds, `{output}`, has no samples along the axis that the sum has them in"
    return ends


def point_before(branch: Branch, facts: Facts) -> Point | None:
    """What a decision on a branch can read: the value that it starts from, or the last one before."""
    earlier = [point for point in facts.points.points if is_before(point, branch, facts)]
    return earlier[-1] if earlier else None


def is_before(point: Point, branch: Branch, facts: Facts) -> bool:
    """Whether a decision taken at `point` is known where a branch starts."""
    return facts.order[point.name] <= facts.order[branch.entry]


def point_at(share: float, program: Program, facts: Facts) -> Point | None:
    """The last place for a decision that has at most a share of the network's MACs before it, or the first.

    None where there is no place. MACs of work beside the trunk count where it stands in the graph.
    """
    order = [node.name for node in program.graphs["eval"].nodes]
    total = evaluate(facts.macs.path, {})
    spent, before = 0, dict[str, float]()
    for name in order:
        spent += evaluate(facts.macs.nodes.get(name, {}), {})
        before[name] = spent / max(total, 1)
    places = facts.points.points
    fitting = [point for point in places if before[point.name] <= share]
    return fitting[-1] if fitting else next(iter(places), None)
