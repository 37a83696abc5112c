"""Values of one program in frames: nodes, or what is known ahead of time.

A value is worked out when something asks for it. State, positions and sizes that follow from known decisions
are constants; an operator of the network becomes a call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from dyncompile.analysis.flow import carries_tensor
from dyncompile.analysis.skips import find_skips
from dyncompile.deploy.exports import forms
from dyncompile.deploy.exports.constants import Constants
from dyncompile.deploy.exports.frames import ROWS, Frame
from dyncompile.deploy.exports.joining import write_join
from dyncompile.deploy.exports.widths import NeedsColumn, Sizes
from dyncompile.policies import Policy
from dyncompile.program import POLICY, Decision, Program
from dyncompile.runtime import ops, synthesis
from dyncompile.runtime.synthesis import Kernels
from dyncompile.state import state_tensors
from dyncompile.torchlib import items, map_nodes, nodes_in

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Unknown:
    """A decision that is taken when the program runs: the node that holds it, [1, width]."""

    choice: str
    rows: fx.Node


class Values:
    """What nodes of a graph are in a frame.

    Args:
        graph: of a program, without writes.
        program: its state and its choices.
        policy: asks the decision nets.
        sizes: of the graph's values.
        constants: where the state that frames read is looked up, and constants are kept.
    """

    def __init__(
        self, graph: fx.Graph, program: Program, policy: Policy, sizes: Sizes, constants: Constants
    ) -> None:
        self.sizes = sizes
        self._policy, self._constants, self._choices = policy, constants, program.choices
        self._tensors = state_tensors(program.state)
        self._ends = {skip.last: skip for skip in find_skips(graph)}
        self._forms: Mapping[Any, Callable[[Frame, fx.Node], Any]] = {
            ops.decide: self.decision,
            ops.gain: self._gain,
            ops.scale: self._scaled,
            ops.leave: self._left,
            ops.put: lambda frame, node: None,
            ops.extent: self._by_column,
            ops.pick: self._by_column,
            ops.prefix: self._prefix,
            ops.positions: self._positions,
            ops.take: self._taken,
            ops.active: self._active,
            ops.count: self._folded,
            ops.gains: self._gains,
            ops.synthesize: self._synthesized,
            aten.sym_size.int: self._size,
            **dict.fromkeys(synthesis.LAYERS, self._with_kernel),
        }

    def value(self, frame: Frame, node: fx.Node) -> Any:
        """A value in a frame: a node of its graph, several, or what is known ahead of time.

        Raises:
            NeedsColumn: its size depends on a choice that is not known here.
        """
        if node.op == "get_attr":
            return self._tensors[str(node.target)]
        if node.op == "placeholder" and node.target == POLICY:
            return None
        if frame.has(node):
            self.sizes.check(frame, node)
            return frame.find(node)
        if node in self._ends:
            made = write_join(self, frame, self._ends[node])
        else:
            made = self._forms.get(node.target, self._plain)(frame, node)
        if node.target is not ops.decide:  # what is not known here may be known inside
            frame.values[node] = made
        return made

    def _arguments(self, frame: Frame, node: fx.Node) -> tuple[Any, dict[str, Any]]:
        return map_nodes((node.args, dict(node.kwargs)), lambda operand: self.value(frame, operand))

    def _plain(self, frame: Frame, node: fx.Node) -> Any:
        """An operator of the network; arithmetic of sizes is done at once."""
        given, target = self._arguments(frame, node), cast(Callable[..., Any], node.target)
        if not nodes_in(given) and not carries_tensor(node):
            return target(*given[0], **given[1])
        args, kwargs = pytree.tree_map(partial(self.literal, frame), given)
        return frame.call(target, *args, **kwargs)

    def read(self, frame: Frame, node: fx.Node) -> Any:
        """A value as an argument of a node."""
        return self.literal(frame, self.value(frame, node))

    def literal(self, frame: Frame, value: Any) -> Any:
        """A value as an argument of a node: tensors that are known ahead of time are read from the state."""
        if not isinstance(value, Tensor):
            return value
        return self._constants.read(frame, value)

    def _size(self, frame: Frame, node: fx.Node) -> Any:
        """The size of an axis; one sample is the batch."""
        source, axis = cast(Any, node.args)
        size = self.sizes.size(frame, source, axis)
        return self._plain(frame, node) if size is None else size

    # -- decisions ----------------------------------------------------------------------------

    def take(self, frame: Frame, name: str, logits: fx.Node) -> fx.Node:
        """Ask a decision net."""
        decide = forms.deciding(self._policy, self._choices[name])
        rows = frame.call(decide, self.read(frame, logits))
        frame.take(name, rows)
        return rows

    def decision(self, frame: Frame, node: fx.Node) -> Decision | Unknown:
        """What is known of a decision in a frame; it is taken if it was not yet."""
        _, name, *features = cast(Any, node.args)
        if name in frame.known:
            row = frame.known[name]
            return Decision(torch.tensor([row]), max(range(len(row)), key=row.__getitem__))
        if frame.has((ROWS, name)):
            return Unknown(name, frame.find((ROWS, name)))
        return Unknown(name, self.take(frame, name, features[0]))

    def _folded(self, frame: Frame, node: fx.Node) -> Any:
        """What decisions and state alone determine, as far as they are known."""
        (first, *others), kwargs = self._arguments(frame, node)
        with torch.no_grad():
            made = cast(Callable[..., Any], node.target)(first, *others, **kwargs)
        return made.single() if isinstance(made, Kernels) else made

    def _by_column(self, frame: Frame, node: fx.Node) -> Any:
        """A size or a state that a column names."""
        (decision, *_), _ = self._arguments(frame, node)
        if isinstance(decision, Unknown):
            raise NeedsColumn(decision.choice)
        return self._folded(frame, node)

    def _prefix(self, frame: Frame, node: fx.Node) -> Any:
        """Leading positions, which are read from the whole."""
        (whole, sizes), _ = self._arguments(frame, node)
        part = self._folded(frame, node)
        self._constants.is_part(part, whole, sizes)
        return part

    def _active(self, frame: Frame, node: fx.Node) -> Any:
        """Positions that are kept one by one: all of them where that is not known ahead of time."""
        (decision, _, size, _), _ = self._arguments(frame, node)
        return torch.arange(size) if isinstance(decision, Unknown) else self._folded(frame, node)

    def _positions(self, frame: Frame, node: fx.Node) -> Any:
        """Kept positions; the tensor that they are for matters by its device alone."""
        (_, *others), _ = self._arguments(frame, node)
        return ops.positions(torch.empty(0), *others)

    def _gains(self, frame: Frame, node: fx.Node) -> Any:
        """The gain of every position, [1, n]."""
        (decision, pattern, block), _ = self._arguments(frame, node)
        if not isinstance(decision, Unknown):
            return self._folded(frame, node)
        width = self._choices[decision.choice].width
        numbers = Decision(torch.arange(width)[None].float() + 2, -1)
        columns = ops.gains(numbers, pattern, block)[0].long() - 2  # where none decides the gain is 1
        columns[columns < 0] = width
        same = len(columns) == width and bool((columns == torch.arange(width)).all())
        return frame.call(forms.gains_along, decision.rows, None if same else self.literal(frame, columns))

    def _taken(self, frame: Frame, node: fx.Node) -> Any:
        """Some positions of state, or of gains that are not known ahead of time."""
        (source, axis, index), _ = self._arguments(frame, node)
        if not isinstance(source, fx.Node):
            return self._folded(frame, node)
        return frame.call(torch.index_select, source, axis, self.literal(frame, index))

    def _synthesized(self, frame: Frame, node: fx.Node) -> Any:
        """A kernel of bases."""
        (weight, bases, decision, *how), _ = self._arguments(frame, node)
        if not isinstance(decision, Unknown):
            return self._folded(frame, node)
        read = (self.literal(frame, value) for value in (weight, bases))
        return frame.call(forms.kernel, *read, decision.rows, *how)

    def _with_kernel(self, frame: Frame, node: fx.Node) -> Any:
        """A layer whose kernel was put together."""
        args, _ = pytree.tree_map(partial(self.literal, frame), self._arguments(frame, node))
        return frame.call(F.linear if node.target is synthesis.basis_linear else F.conv2d, *args)

    # -- gains and exits ----------------------------------------------------------------------

    def _gain(self, frame: Frame, node: fx.Node) -> Any:
        """A product that is no part of a sum."""
        output, decision, weights, _ = cast(Any, node.args)
        gain = self.weighed(frame, self.decision(frame, decision), items(weights))
        return self.times(frame, self.read(frame, output), gain)

    def weighed(
        self, frame: Frame, decision: Decision | Unknown, weights: Sequence[float]
    ) -> fx.Node | float:
        """The gain that a decision gives, as a number if it is known ahead of time."""
        if isinstance(decision, Decision):
            return float(decision.rows[0] @ decision.rows.new_tensor(weights))
        return frame.call(forms.weighed, decision.rows, tuple(weights))

    def times(self, frame: Frame, x: Any, gain: fx.Node | float) -> Any:
        """A value times its gain."""
        if isinstance(gain, fx.Node):
            return frame.call(forms.times, x, gain)
        return x if gain == 1 else frame.call(torch.mul, x, gain)

    def _scaled(self, frame: Frame, node: fx.Node) -> Any:
        """Positions of an axis times their gains."""
        (x, known, axis, _), _ = self._arguments(frame, node)
        if isinstance(known, Tensor) and bool((known == 1).all()):
            return x
        return frame.call(forms.scaled, self.literal(frame, x), self.literal(frame, known), axis)

    def _left(self, frame: Frame, node: fx.Node) -> Any:
        """What the output is where it may be an early prediction."""
        final, early, decision = node.all_input_nodes
        name = str(decision.args[1])
        stops = name in frame.stops or frame.known.get(name, (0.0,))[0] > 0
        return self.value(frame, early if stops else final)
