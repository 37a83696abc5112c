"""A program that is being edited: a copy of its graphs, its state, new decisions, inserted networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from torch import Tensor, fx, nn

from dyncompile.analysis.dims.facts import DimFacts, dim_facts
from dyncompile.analysis.facts import Facts
from dyncompile.analysis.flow import writers_of
from dyncompile.errors import SpecError
from dyncompile.gate import Gate, insert_head, insert_pooling, insert_trunk
from dyncompile.inline import (
    capture_like,
    copy_nodes,
    state_name,
    tensor_inputs,
)
from dyncompile.program import MODES, POLICY, Choice, Mode, Program, copy_graph
from dyncompile.runtime import ops
from dyncompile.state import (
    GATES,
    STATE_PREFIX,
    put_state,
    share_state,
    state_tensors,
)
from dyncompile.torchlib import by_name
from dyncompile.variants import Offer


class Draft:
    """Edits a copy of `program`, both graphs at once. The given program stays as it is."""

    def __init__(self, program: Program, facts: Facts) -> None:
        self._program, self._facts, self._planned = program, facts, facts
        self._graphs: dict[Mode, fx.Graph] = {mode: copy_graph(program.graphs[mode]) for mode in MODES}
        # What plans speak of: the nodes that were there before the edit.
        self._named = {mode: by_name(graph) for mode, graph in self._graphs.items()}
        self._state: nn.Module = share_state(program.state)
        self._tensors: dict[str, Tensor] = state_tensors(self._state)
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

    @property
    def program(self) -> Program:
        """What is edited, as it was."""
        return self._program

    @property
    def facts(self) -> Facts:
        """What was known of it when the edit was planned."""
        return self._planned

    def inputs(self) -> dict[Mode, list[fx.Node]]:
        """The source's tensor inputs in each graph, in order."""
        return {mode: tensor_inputs(graph) for mode, graph in self._graphs.items()}

    def at(self, names: Mapping[Mode, str]) -> dict[Mode, fx.Node]:
        """The nodes of these names that the program had before the edit, one in each graph."""
        return {mode: self._named[mode][names[mode]] for mode in MODES}

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
            inputs = graph.find_nodes(op="placeholder")
            policy = next(node for node in inputs if node.target == POLICY)
            own = tuple(read[mode]) if read else ()
            features = (self._insert_gate(mode, graph, choice, gate),) if gate else own
            with graph.inserting_after(max(features) if features else self._last_ungated(mode) or inputs[-1]):
                decision = graph.call_function(ops.decide, (policy, choice.name, *features))
            self._decisions[mode, choice.name] = decision

    def _insert_gate(self, mode: Mode, graph: fx.Graph, choice: Choice, gate: Gate) -> fx.Node:
        key = mode, gate.point.name, gate.cells
        if key not in self._features:
            self._features[key] = insert_pooling(graph, self._named[mode][gate.point.nodes[mode]], gate)

        def read(graph: fx.Graph, layer: str) -> fx.Node:
            node = graph.get_attr(f"{GATES}.{choice.name}.{layer}")
            node.meta["val"] = self._tensors[str(node.target)]
            return node

        if not gate.trunk:
            self._trunks[mode, choice.name] = insert_trunk(graph, self._features[key], gate, read)
        return insert_head(graph, self._trunks[mode, gate.trunk or choice.name], read)

    def _last_ungated(self, mode: Mode) -> fx.Node | None:
        decisions = [node for (other, _), node in self._decisions.items() if other == mode]
        ungated = [node for node in decisions if len(node.args) == 2]
        return max(ungated) if ungated else None

    def add_state(self, name: str, value: Tensor) -> str:
        """Register a parameter or buffer under ``dyn.``; returns its full name."""
        target = f"{STATE_PREFIX}.{name}"
        put_state(self._state, target, value)
        self._tensors[target] = value
        return target

    def _like_source(self, value: Tensor) -> Tensor:
        """On the source's device and in its dtype, as a parameter."""
        return nn.Parameter(value.detach().to(self._home.device, self._home.dtype))

    @property
    def _home(self) -> Tensor:
        """A parameter of the source: what is added lies where it does, in its dtype."""
        return next(p for p in self._state.parameters() if p.is_floating_point())

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

    @cached_property
    def _written(self) -> Mapping[Mode, Mapping[fx.Node, Mapping[fx.Node, fx.Node]]]:
        """For each node, what it reads that was overwritten since, and by whom, as first asked for."""
        return {mode: writers_of(graph) for mode, graph in self._graphs.items()}

    @property
    def _dims(self) -> DimFacts:
        """Dimension types of what has been edited so far."""
        if self._stale:
            program = replace(self._program, graphs=self._graphs, state=self._state)
            self._facts = replace(self._facts, dims=dim_facts(program))
            self._stale = False
        return self._facts.dims
