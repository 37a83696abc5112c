"""The Editor: the only code that changes graphs. It works on a copy and on both graphs at once.

A pass speaks of choices, elastic dims and state names; that there is a training and an evaluation graph, and
what their nodes are called, stays in here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from dyncompile.analysis.dims.algebra import size
from dyncompile.analysis.dims.facts import DimFacts, dim_facts
from dyncompile.analysis.facts import Facts
from dyncompile.analysis.points import Point
from dyncompile.analysis.sums import Sums
from dyncompile.errors import SpecError
from dyncompile.gate import Gate, insert_head, insert_pooling, insert_trunk
from dyncompile.inline import Alternatives, capture_like, copy_nodes, state_name
from dyncompile.insertions import Insertions
from dyncompile.plan import Gained, Mixed, Plan
from dyncompile.program import MODES, POLICY, Choice, Mode, Picked, Program, Sized, copy_graph
from dyncompile.resize import Resizer, leading_symbol, restore_reads
from dyncompile.runtime import ops
from dyncompile.runtime.rows import batch_axis
from dyncompile.state import GATES, STATE_PREFIX, drop_state, put_state, share_state, state_tensors
from dyncompile.variants import Offer, inputs_alone, inputs_of, offered

_ALTERNATIVES = "branches"
"""Where inserted alternatives are kept, under ``dyn.``."""

_STATISTICS = "statistics"
"""Where private batch-norm statistics are kept, under ``dyn.``."""


class Editor(Insertions):
    """Edits a copy of `program`; `finish` returns the result. The given program stays as it is."""

    def __init__(self, program: Program, facts: Facts) -> None:
        self._program, self._facts, self._planned = program, facts, facts
        self._graphs: dict[Mode, fx.Graph] = {mode: copy_graph(program.graphs[mode]) for mode in MODES}
        self._state = share_state(program.state)
        self._tensors = state_tensors(self._state)
        self._choices = dict(program.choices)
        self._sized = dict(program.sized)
        self._picked = dict(program.picked)
        self._stale = False
        self._offer: tuple[Offer, Mapping[Mode, fx.Graph]] | None = None
        self._trunks: dict[tuple[Mode, str], fx.Node] = {}
        self._features: dict[tuple[Mode, str, tuple[int, int] | None], fx.Node] = {}
        self._decisions: dict[tuple[Mode, str], fx.Node] = {
            (mode, str(node.args[1])): node
            for mode, graph in self._graphs.items()
            for node in graph.nodes
            if node.target is ops.decide
        }

    def add_choice(
        self,
        choice: Choice,
        gate: Gate | None = None,
        *,
        read: Mapping[Mode, Sequence[fx.Node]] | None = None,
    ) -> None:
        """Insert a decision.

        With a gate it is taken after the point that the gate reads, from its logits or by the policy; without
        one by the policy alone, right after the inputs. `read`: logits of a pass's own net, then other data.
        """
        if choice.name in self._choices:
            raise SpecError(
                f"there is a choice named {choice.name!r} already", fix="give this pass another name"
            )
        self._choices[choice.name] = choice
        if gate is not None:
            for name, value in gate.parameters(choice).items():
                self.add_state(f"gates.{choice.name}.{name}", self._like_source(value))
            self._stale = True
        for mode, graph in self._graphs.items():
            inputs = [node for node in graph.nodes if node.op == "placeholder"]
            policy = next(node for node in inputs if node.target == POLICY)
            own = tuple(read[mode]) if read else ()
            features = (self._insert_gate(mode, graph, choice, gate),) if gate else own
            with graph.inserting_after(max(features) if features else self._last_ungated(mode) or inputs[-1]):
                decision = graph.call_function(ops.decide, (policy, choice.name, *features))
            self._decisions[mode, choice.name] = decision

    def _insert_gate(self, mode: Mode, graph: fx.Graph, choice: Choice, gate: Gate) -> fx.Node:
        key = mode, gate.point.name, gate.cells
        if key not in self._features:
            at = next(node for node in graph.nodes if node.name == gate.point.nodes[mode])
            self._features[key] = insert_pooling(graph, at, gate)

        def read(graph: fx.Graph, layer: str) -> fx.Node:
            node = graph.get_attr(f"{GATES}.{choice.name}.{layer}")
            node.meta["val"] = self._tensors[str(node.target)]
            return node

        if not gate.trunk:
            self._trunks[mode, choice.name] = insert_trunk(graph, self._features[key], gate, read)
        return insert_head(graph, self._trunks[mode, gate.trunk or choice.name], read)

    def _like_source(self, value: Tensor) -> Tensor:
        """On the source's device and in its dtype, as a parameter."""
        return nn.Parameter(value.detach().to(self._home.device, self._home.dtype))

    @property
    def _home(self) -> Tensor:
        """A parameter of the source: what is added lies where it does, in its dtype."""
        return next(p for p in self._state.parameters() if p.is_floating_point())

    def _last_ungated(self, mode: Mode) -> fx.Node | None:
        decisions = [node for (other, _), node in self._decisions.items() if other == mode]
        ungated = [node for node in decisions if len(node.args) == 2]
        return max(ungated) if ungated else None

    @property
    def _dims(self) -> DimFacts:
        """Dimension types of what has been edited so far."""
        if self._stale:
            program = replace(self._program, graphs=self._graphs, state=self._state)
            self._facts = replace(self._facts, dims=dim_facts(program))
            self._stale = False
        return self._facts.dims

    def add_state(self, name: str, value: Tensor) -> str:
        """Register a parameter or buffer under ``dyn.``; returns its full name."""
        target = f"{STATE_PREFIX}.{name}"
        put_state(self._state, target, value)
        self._tensors[target] = value
        return target

    def insert(
        self,
        module: nn.Module,
        prefix: str,
        inputs: Mapping[Mode, Sequence[fx.Node]],
        after: Mapping[Mode, fx.Node] | None = None,
    ) -> dict[Mode, tuple[fx.Node, ...]]:
        """Insert a network after the values that it reads; its flat outputs in each graph.

        Args:
            module: captured like a source, in the source's dtype; it stays as it is.
            prefix: its state is called ``dyn.<prefix>.<name>``.
            inputs: the nodes that it reads in each graph, in the order of its arguments.
            after: nodes that it is to stand behind, too: an exit, which rows that leave do not pass.

        Raises:
            CaptureError: the module cannot be traced on values of these shapes.
        """
        home = self._home
        own = capture_like(module, [node.meta["val"] for node in inputs["eval"]], home)
        saved = set(own.state.state_dict())
        for name, value in state_tensors(own.state).items():
            target = state_name(prefix, name)
            put_state(self._state, target, value, persistent=name in saved)
            self._tensors[target] = value
        self._stale = True
        return {
            mode: copy_nodes(
                own.graphs[mode],
                graph,
                inputs[mode],
                prefix,
                self._tensors.__getitem__,
                after[mode] if after else None,
            )
            for mode, graph in self._graphs.items()
        }

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
                mode: [inputs_of(graph)[offer.image + 1]] for mode, graph in head._graphs.items()
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
            nodes = {node.name: node for node in graph.nodes}
            types = self._dims.graphs[mode].types
            for one in gained:
                exit, output = (nodes[name] for name in one.nodes[mode])
                decision = self._decisions[mode, one.choice]
                batch = batch_axis(types[output.name])
                with graph.inserting_after(max(output, decision)):
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
        at: dict[Mode, list[fx.Node]] = {}
        for mode, graph in self._graphs.items():
            nodes = {node.name: node for node in graph.nodes}
            at[mode] = [nodes[name] for name in one.nodes[mode] if name]
        outputs = self._alternatives(one, modules, {mode: found[0] for mode, found in at.items()})
        width = self._choices[one.choice].width
        weights = tuple(tuple(float(i == column) for i in range(width)) for column in one.columns)
        for mode, graph in self._graphs.items():
            output, readers = at[mode][1], at[mode][2:] or list(at[mode][1].users)
            operands = [output, *outputs[mode]]
            decision = self._decisions[mode, one.choice]
            batch = batch_axis(self._facts.dims.graphs[mode].types[output.name])
            with graph.inserting_after(max(*operands, decision)):
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
            value = next(node for node in graph.nodes if node.name == point.nodes[mode])
            found = self._dims.graphs[mode].types[value.name]
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

    def resize(self, sized: Mapping[str, Sized], picked: Mapping[str, Picked] | None = None) -> None:
        """Let choices decide the size of elastic dims, or which positions of them are kept.

        Batch-norm statistics become private per column of the choice that sizes their channels (or of the
        only choice there is): activations at different widths have different distributions. Where several
        choices meet in one norm its statistics stay shared and are written through. Sizes that earlier passes
        decided are put in again together with the new ones, since they may meet in one tensor.
        """
        sized = {**self._sized, **sized}
        if self._sized or self._picked:
            self._undo_resizing()
        self._picked.update(picked or {})
        statistics = self._dims.statistics
        private = {
            name: choice for name in sorted(statistics) if (choice := self._owner(name, sized)) is not None
        }
        options = {name: self._private(name, choice, sized) for name, choice in private.items()}
        for mode, graph in self._graphs.items():
            self._resize_graph(mode, graph, sized, options)
        self._sized = sized

    def _undo_resizing(self) -> None:
        """State is read at full size again, and no statistics are private."""
        private = f"{STATE_PREFIX}.{_STATISTICS}."
        for graph in self._graphs.values():
            for node in [n for n in graph.nodes if n.target is ops.pick]:
                reads = [n for n in node.all_input_nodes if n.op == "get_attr"]
                own = [n for n in reads if not str(n.target).startswith(private)]
                if len(own) == 1:
                    node.replace_all_uses_with(own[0])
                    for unused in (node, *(n for n in reads if n not in own)):
                        graph.erase_node(unused)
            restore_reads(graph)
        drop_state(self._state, private.removesuffix("."))
        self._tensors = state_tensors(self._state)

    def _owner(self, name: str, sized: Mapping[str, Sized]) -> Choice | None:
        """The one choice that the statistics of a norm depend on.

        None if there are several or none yet, or if channels are kept one by one: statistics then are those
        of the channel, whichever others are kept.
        """
        dims = self._facts.elastics_of(name)
        if any(e in self._picked for e in dims):
            return None
        own = {sized[e].choice for e in dims if e in sized}
        names = own or {one.choice for one in sized.values() if self._precedes(one.choice, name)}
        return self._choices[next(iter(names))] if len(names) == 1 else None

    def _precedes(self, choice: str, state: str) -> bool:
        """Whether a choice is decided before anything uses the state of this name."""
        for mode, graph in self._graphs.items():
            decision = self._decisions[mode, choice]
            reads = [node for node in graph.nodes if node.op == "get_attr" and node.target == state]
            if any(user < decision for node in reads for user in node.users):
                return False
        return True

    def _private(self, name: str, choice: Choice, sized: Mapping[str, Sized]) -> list[str]:
        """State names per column; the full column is the source's own buffer."""
        source = self._tensors[name]
        out: list[str] = []
        for column in range(choice.width):
            widths = {e: one.sizes[column] for e, one in sized.items() if one.choice == choice.name}
            index = self._facts.kept(name, 0, widths)
            value = source.detach().index_select(0, index.to(source.device))
            is_full = choice.row(column) == choice.full
            out.append(
                name if is_full else self.add_state(f"{_STATISTICS}.{choice.name}.{column}.{name}", value)
            )
        return out

    def _resize_graph(
        self, mode: Mode, graph: fx.Graph, sized: Mapping[str, Sized], options: Mapping[str, list[str]]
    ) -> None:
        extents: dict[Sized, fx.Node] = {}
        for one in dict.fromkeys(sized.values()):
            decision = self._decisions[mode, one.choice]
            with graph.inserting_after(decision):
                extents[one] = graph.call_function(ops.extent, (decision, one.sizes))
            extents[one].meta["val"] = max(one.sizes)
        sizes = {name: extents[one] for name, one in sized.items()}
        dims = self._dims
        picks = self._picks(mode, graph)
        for name, index in picks.items():
            with graph.inserting_after(index):
                sizes[name] = graph.call_function(ops.count, (index,))
            sizes[name].meta["val"] = dims.elastic[name].dim.size
        resizer = Resizer(graph, dims.graphs[mode], dims.state, sizes, picks)

        def choose(node: fx.Node) -> fx.Node | None:
            names = options.get(str(node.target))
            return None if names is None else self._pick(mode, graph, node, names, sized)

        resizer.run(dims.statistics, choose)

    def _picks(self, mode: Mode, graph: fx.Graph) -> dict[str, fx.Node]:
        """Which positions of each picked dim are active."""
        found = {str(node.args[1]): node for node in graph.nodes if node.target is ops.active}
        for name, one in self._picked.items():
            if name not in found:
                decision, whole = self._decisions[mode, one.choice], self._dims.elastic[name].dim.size
                with graph.inserting_after(decision):
                    found[name] = graph.call_function(ops.active, (decision, name, whole, one.block))
        return found

    def _pick(
        self, mode: Mode, graph: fx.Graph, node: fx.Node, names: list[str], sized: Mapping[str, Sized]
    ) -> fx.Node:
        """A node that holds the statistics of the present column."""
        choice = self._owner(str(node.target), sized)
        assert choice is not None
        after, reads = node, list[fx.Node]()
        for name in names:
            if name != node.target:
                with graph.inserting_after(after):
                    after = graph.get_attr(name)
                after.meta["val"] = self._tensors[name]
            reads.append(node if name == node.target else after)
        decision = self._decisions[mode, choice.name]
        with graph.inserting_after(decision if after < decision else after):
            picked = graph.call_function(ops.pick, (decision, reads))
        picked.meta["val"] = node.meta["val"]
        return picked

    def finish(self, spec: str, plan: Plan) -> Program:
        """The edited program, with `spec` and its plan added to its history."""
        for graph in self._graphs.values():
            graph.lint()
        program = replace(
            self._program,
            graphs=self._graphs,
            state=self._state,
            choices=self._choices,
            sized=self._sized,
            picked=self._picked,
            history=(*self._program.history, spec),
            plans=(*self._program.plans, replace(plan, offer=None)),
        )
        return program if self._offer is None else offered(program, *self._offer)


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
