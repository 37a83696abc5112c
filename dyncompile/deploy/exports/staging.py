"""A network at batch 1 as a graph of conditions: what `runtime.sparse` does for groups of rows, for one row.

    decide a width            if among the lower half: if column 0: ... else: ...     a side per column
    exit                      if it stops: the early prediction, else: all that follows
    gain, mix                 if the gain is not 0: kept + gain * branch, else: kept

The work between two cuts (`runtime.segments`) is what stands in the sides of a width, so that sides do not
multiply with the number of decisions: values that cross a cut are padded with zeros to their full size, and
narrowed again where they are read. Which choices a piece of work depends on is found while it is written:
whoever meets a size that nobody knows yet asks for a column.

Channels that are kept one by one (`Picked`) are not narrowed: a condition cannot do that. Gains of 0 mask
them, which is as good as removing them, and costs what all of them cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from dyncompile.analysis.dims.facts import dim_facts
from dyncompile.deploy.exports import forms
from dyncompile.deploy.exports.columns import by_column
from dyncompile.deploy.exports.constants import Constants
from dyncompile.deploy.exports.frames import ROWS, Frame, Row
from dyncompile.deploy.exports.pure import without_writes
from dyncompile.deploy.exports.values import Values
from dyncompile.deploy.exports.widths import NeedsColumn, Sizes
from dyncompile.errors import SpecError
from dyncompile.policies import Policy
from dyncompile.program import Choice, Program, flat_inputs
from dyncompile.runtime import ops
from dyncompile.runtime.segments import cut
from dyncompile.torchlib import by_name, is_several, items

SIDES = 512
"""So many sides of widths a program may have."""


class Stager:
    """Writes the evaluation graph of one program into frames.

    Args:
        program: decisions and all; its inputs are one sample.
        policy: asks the decision nets.
        constants: where the state that frames read is looked up, and constants are kept.
    """

    def __init__(self, program: Program, policy: Policy, constants: Constants) -> None:
        self._policy, self._constants, self._choices = policy, constants, program.choices
        types = dim_facts(program).graphs["eval"].types
        self.graph = without_writes(program.graphs["eval"])
        self.sizes = Sizes(self.graph, types, program, constants)
        self._values = Values(self.graph, program, policy, self.sizes, constants)
        self._nodes = by_name(self.graph)
        self._segments = cut(self.graph, types, program)
        self._sides = 0

    @property
    def asks(self) -> set[str]:
        """Choices that a decision net is asked for."""
        return {str(n.args[1]) for n in self.graph.nodes if n.target is ops.decide and len(n.args) > 2}

    @property
    def fixed(self) -> dict[str, Row]:
        """Choices that no decision net is asked for, with their rows."""
        unasked = (choice for name, choice in self._choices.items() if name not in self.asks)
        return {choice.name: row_of(self._policy, choice) for choice in unasked}

    def write(self, frame: Frame, inputs: Sequence[Any]) -> list[Any]:
        """Write everything; flat outputs, constants of Python as they are."""
        frame.values.update(zip(flat_inputs(self.graph), inputs, strict=True))
        found = iter(self._from(0, frame))
        return [next(found) if isinstance(value, fx.Node) else value for value in self._outputs]

    @property
    def outputs(self) -> list[fx.Node]:
        """The flat outputs that are no constants of Python."""
        return [value for value in self._outputs if isinstance(value, fx.Node)]

    @property
    def _outputs(self) -> list[Any]:
        return [] if self._constants.decisions_only else items(self.graph.output_node().args[0])

    def ask(self, frame: Frame, decide: fx.Node) -> None:
        """Take a decision whose inputs are there."""
        self._values.decision(frame, decide)

    def _from(self, index: int, frame: Frame) -> list[fx.Node]:
        """Segment `index` and all that follow: the outputs that are nodes."""
        segment = self._segments[index]
        for name in segment.choices:
            if name in segment.logits:
                self._values.take(frame, name, self._nodes[segment.logits[name]])
        return self._past_exits(list(segment.outlets), index, frame)

    def _past_exits(self, exits: list[str], index: int, frame: Frame) -> list[fx.Node]:
        """The exits of a segment that are left to ask, then its work."""
        asked = [name for name in exits if name not in frame.known]
        if not asked:
            return self._on(index, frame)
        first, *others = asked

        def stop(side: Frame) -> list[fx.Node]:
            return self._last(side)

        def go_on(side: Frame) -> list[fx.Node]:
            return self._past_exits(others, index, side)

        stops = frame.call(forms.stops, frame.find((ROWS, first)))
        return frame.cond(
            stops, [(frame.inside(stops=(first,)), stop), (frame.inside(), go_on)], self._constants.full
        )

    def _on(self, index: int, frame: Frame) -> list[fx.Node]:
        """The work of a segment, then what follows."""
        if index + 1 == len(self._segments):
            return self._last(frame)
        gives = [self._nodes[name] for name in self._segments[index].gives]
        for node, value in zip(gives, self._settled(frame, gives), strict=True):
            frame.values[node] = value
        return self._from(index + 1, frame)

    def _last(self, frame: Frame) -> list[fx.Node]:
        return [self._values.literal(frame, value) for value in self._settled(frame, self.outputs)]

    # -- columns ------------------------------------------------------------------------------

    def _settled(self, frame: Frame, nodes: Sequence[fx.Node]) -> list[Any]:
        """The values of `nodes`, in a side for every column that they depend on."""
        try:
            return [self._values.value(frame, node) for node in nodes]
        except NeedsColumn as needed:
            choice = self._choices[needed.choice]

        def write(side: Frame, column: int) -> list[fx.Node]:
            self._sides += 1
            if self._sides > SIDES:
                raise SpecError(
                    f"the program needs more than {SIDES} sides for its widths, the last for {choice.name!r}",
                    fix="decide fewer widths that depend on one another: per=stage or per=model",
                )
            return self._at_full_size(side, nodes)

        def blank(side: Frame) -> list[fx.Node]:
            return self.sizes.blank(side, nodes)

        found = iter(by_column(frame, choice, write, blank, self._constants.full))
        shapes = [node.meta["val"] for node in nodes]
        return [[next(found) for _ in shape] if is_several(shape) else next(found) for shape in shapes]

    def _at_full_size(self, frame: Frame, nodes: Sequence[fx.Node]) -> list[fx.Node]:
        """The values of `nodes`, flat, in the sizes that they have outside of this side."""
        flat: list[fx.Node] = []
        for node, value in zip(nodes, self._settled(frame, nodes), strict=True):
            flat += self.sizes.padded(frame, node, [self._values.literal(frame, one) for one in items(value)])
        return flat


def row_of(policy: Policy, choice: Choice) -> Row:
    """The row that a policy gives a choice without a decision net."""
    return tuple(map(float, policy.decide(choice, 1, None)[0]))
