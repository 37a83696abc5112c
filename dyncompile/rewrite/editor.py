"""The Editor: the only code that changes graphs. It works on a copy and on both graphs at once.

A pass speaks of choices, elastic dims and state names; that there is a training and an evaluation graph, and
what their nodes are called, stays in here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import fx, nn

from dyncompile.analysis.dims.algebra import size
from dyncompile.analysis.flow import op_name
from dyncompile.analysis.points import Point
from dyncompile.analysis.sums import Sums
from dyncompile.exits import insert_leave
from dyncompile.inline import (
    Alternatives,
    reading,
    values,
)
from dyncompile.mixing import mix_weight
from dyncompile.plan import Gained, Mixed, Plan, Synthesized
from dyncompile.program import MODES, Choice, Mode, Picked, Program, flat_inputs, source_line
from dyncompile.resize import leading_symbol
from dyncompile.rewrite.sizing import Sizing
from dyncompile.runtime import ops
from dyncompile.runtime.rows import batch_axis
from dyncompile.state import (
    BASES,
    EXITS,
)
from dyncompile.variants import Offer, inputs_alone, offered

_ALTERNATIVES = "branches"
"""Where inserted alternatives are kept, under ``dyn.``."""


class Editor(Sizing):
    """What passes edit with; `finish` returns the result."""

    def vary(self, offer: Offer) -> None:
        """Let a choice decide the size of an input; the network at other sizes comes with the offer.

        The graphs stay as they are; the decision has graphs of its own, which run first.
        """
        graphs = {mode: inputs_alone(graph) for mode, graph in self._graphs.items()}
        bare = replace(self._program, graphs=graphs, state=self._state, choices={}, sized={}, picked={})
        head = Editor(bare, self._facts)
        logits = None
        if offer.net is not None:
            images: dict[Mode, list[fx.Node]] = {
                mode: [flat_inputs(graph)[offer.image]] for mode, graph in head._graphs.items()
            }
            logits = head.insert(offer.net, f"gates.{offer.choice.name}", images)
        head.add_choice(offer.choice, read=logits)
        for mode, graph in head._graphs.items():
            graph.output((head._decisions[mode, offer.choice.name],))
        self._choices[offer.choice.name] = offer.choice
        self._state, self._tensors = head._state, head._tensors
        self._offer = offer, head._graphs

    def gain(self, gained: Iterable[Gained]) -> None:
        """Let choices scale what branches add; at gain 0 nothing of a branch need run."""
        for mode, graph in self._graphs.items():
            types = self._facts.dims.graphs[mode].types
            for one in gained:
                exit, output = (self._named[mode][name] for name in one.nodes[mode])
                decision = self._decisions[mode, one.choice]
                batch = batch_axis(types[output.name])
                with graph.inserting_after(max(self._written[mode][exit].get(output, output), decision)):
                    new = graph.call_function(ops.gain, (output, decision, one.weights, batch))
                new.meta = dict(output.meta)
                new.meta.pop("nn_module_stack", None)  # it is no part of the module that made the output
                exit.replace_input_with(output, new)
        self._stale = True

    def mix(self, one: Mixed, modules: Sequence[nn.Module | None]) -> None:
        """Let a choice weigh alternatives to what a part of the network computes.

        Args:
            one: where, and which columns of the choice weigh which alternative.
            modules: the inserted alternatives, called with the entry; None is the entry itself.

        Raises:
            CaptureError: a module cannot be traced on values like the entry.
        """
        at: dict[Mode, list[fx.Node]] = {
            mode: [self._named[mode][name] for name in one.nodes[mode] if name] for mode in MODES
        }
        outputs = self._alternatives(one, modules, {mode: found[0] for mode, found in at.items()})
        width = self._choices[one.choice].width
        weights = tuple(tuple(float(i == column) for i in range(width)) for column in one.columns)
        for mode, graph in self._graphs.items():
            output, readers = at[mode][1], at[mode][2:] or list(at[mode][1].users)
            operands = [output, *outputs[mode]]
            written = [self._written[mode][reader].get(output, output) for reader in at[mode][2:]]
            decision = self._decisions[mode, one.choice]
            batch = batch_axis(self._facts.dims.graphs[mode].types[output.name])
            with graph.inserting_after(max(*operands, *written, decision)):
                new = graph.call_function(ops.mix, (operands, decision, weights, batch))
            new.meta = dict(output.meta)
            new.meta.pop("nn_module_stack", None)  # it is no part of the module that made the output
            for reader in readers:
                reader.replace_input_with(output, new)
        self._stale = True

    def _alternatives(
        self, one: Mixed, modules: Sequence[nn.Module | None], entries: Mapping[Mode, fx.Node]
    ) -> dict[Mode, list[fx.Node]]:
        """What the inserted alternatives give, in order; the entry itself where there is no module."""
        named = dict(zip(one.alternatives, modules, strict=True))
        own = Alternatives({name: module for name, module in named.items() if module is not None})
        given: Mapping[Mode, tuple[fx.Node, ...]] = dict.fromkeys(MODES, ())
        if len(own):
            inputs: dict[Mode, list[fx.Node]] = {mode: [entry] for mode, entry in entries.items()}
            given = self.insert(own, f"{_ALTERNATIVES}.{one.name}", inputs)
        found: dict[Mode, list[fx.Node]] = {}
        for mode, entry in entries.items():
            new = dict(zip(own, given[mode], strict=True))
            found[mode] = [new.get(name, entry) for name in named]
        return found

    def scale(self, picked: Mapping[str, Picked]) -> None:
        """Let choices keep and scale positions of elastic dims, one by one.

        Gains are applied where a dim is summed over: there a gain of 0 removes a position. What no row keeps
        is not computed.
        """
        if not picked:
            return
        for mode, graph in self._graphs.items():
            dims = self._dims.graphs[mode]
            sums = Sums(dims.types, dims.contractions)
            for node in [node for node in graph.nodes if node.op == "call_function"]:
                for operand, axis, name in list(sums.operands(node, picked)):
                    dim, one = sums.dims(operand)[axis], picked[name]
                    decision = self._decisions[mode, one.choice]
                    gains = self._gains(mode, decision, ops.encode(dim, [name]), size(dim), one.block)
                    _scale(graph, node, operand, gains, axis, batch_axis(sums.dims(operand)))
        self._stale = True
        self.resize({}, picked)

    def attend(self, choice: str, point: Point) -> None:
        """Scale the channels of a value, for all that reads it after the decision."""
        for mode, graph in self._graphs.items():
            decision = self._decisions[mode, choice]
            value = self._named[mode][point.nodes[mode]]
            found = self._facts.dims.graphs[mode].types[value.name]
            assert isinstance(found, tuple)
            count = size(found[point.channels])
            gains = self._gains(mode, decision, (("x", 0, count),), count, 1)
            with graph.inserting_after(gains):
                new = graph.call_function(ops.scale, (value, gains, point.channels, 0))
            new.meta = dict(value.meta)
            for user in [user for user in value.users if user > new]:
                user.replace_input_with(value, new)
        self._stale = True

    def _gains(
        self, mode: Mode, decision: fx.Node, pattern: ops.Pattern, positions: int, block: int
    ) -> fx.Node:
        """Gains of all positions of a dim, as a value [B, positions]."""
        graph = self._graphs[mode]
        with graph.inserting_after(decision):
            gains = graph.call_function(ops.gains, (decision, pattern, block))
        like = next(node for node in graph.nodes if leading_symbol(node) is not None).meta["val"]
        gains.meta["val"] = like.new_empty((like.shape[0], positions), dtype=torch.float32)
        return gains

    def exit(self, choice: Choice, early: Mapping[Mode, fx.Node], sure: nn.Module) -> dict[Mode, fx.Node]:
        """Let rows have an early prediction for their output; `sure` scores it. Where that is decided."""
        scores = self.insert(sure, f"{EXITS}.{choice.name}", reading(early))
        self.add_choice(choice, read=reading(*values(scores), early))
        for mode, graph in self._graphs.items():
            insert_leave(graph, self._decisions[mode, choice.name], early[mode])
        self._stale = True
        return {mode: self._decisions[mode, choice.name] for mode in MODES}

    def synthesize(self, synthesized: Mapping[str, Synthesized]) -> None:
        """Let choices put weights together from bases, which are 0 at first."""
        if self._sized or self._picked:
            self._undo_resizing()
        for name, one in synthesized.items():
            zeros = torch.zeros(one.bases, *self._tensors[name].shape)
            bases = self.add_state(f"{BASES}.{name}", self._like_source(zeros))
            for mode, graph in self._graphs.items():
                mix_weight(graph, name, bases, self._decisions[mode, one.choice], one, self._tensors)
        self._stale = True
        if self._sized or self._picked:
            self.resize({})

    def finish(self, spec: str, plan: Plan) -> Program:
        """The edited program, with `spec` and its plan added to its history."""
        if self._stale and (self._sized or self._picked):
            self.resize({})  # what was inserted follows the sizes that earlier passes decide
        for graph in self._graphs.values():
            graph.lint()
        program = replace(
            self._program,
            graphs=self._graphs,
            state=self._state,
            choices=self._choices,
            sized=self._sized,
            picked=self._picked,
            notes=tuple(dict.fromkeys((*self._program.notes, *self._notes()))),
            history=(*self._program.history, spec),
            plans=(*self._program.plans, replace(plan, offer=None)),
        )
        return program if self._offer is None else offered(program, *self._offer)

    def _notes(self) -> Iterator[str]:
        """Where samples meet behind a decision: rows run in groups there, by what was decided."""
        decided = [node for (mode, _), node in self._decisions.items() if mode == "eval"]
        for node in (self._named["eval"][name] for name in self._planned.meetings):
            if self._offer is not None or any(one < node for one in decided):
                place = source_line(node) or f"`{node}`"
                yield (
                    f"{op_name(node)} lets samples meet behind decisions, at {place}: "
                    f"what a row gets may depend on which rows are decided like it"
                )


def _scale(
    graph: fx.Graph, reader: fx.Node, operand: fx.Node, gains: fx.Node, axis: int, batch: int | None
) -> None:
    """Let `reader` read `operand` times gains, on top of those that it has been given already."""
    current = next(node for node in reader.all_input_nodes if _stands_for(node, operand))
    with graph.inserting_before(reader):
        new = graph.call_function(ops.scale, (current, gains, axis, batch))
    new.meta = dict(operand.meta)
    reader.replace_input_with(current, new)


def _stands_for(node: fx.Node, operand: fx.Node) -> bool:
    """Whether a node is `operand`, or scales it."""
    while node is not operand and node.target is ops.scale:
        node = node.all_input_nodes[0]
    return node is operand
