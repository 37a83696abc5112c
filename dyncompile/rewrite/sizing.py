"""Sizes that choices decide: reads of the state are narrowed, batch norms get private statistics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import fx

from dyncompile.program import Choice, Mode, Picked, Sized
from dyncompile.resize import Resizer, restore_reads
from dyncompile.rewrite.draft import Draft
from dyncompile.runtime import ops
from dyncompile.state import (
    STATE_PREFIX,
    drop_state,
    state_tensors,
)

_STATISTICS = "statistics"
"""Where private batch-norm statistics are kept, under ``dyn.``."""


class Sizing(Draft):
    """A draft whose elastic dims choices can resize."""

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
        private = self._owners(sorted(statistics), sized)
        options = {name: self._private(name, choice, sized) for name, choice in private.items()}
        for mode, graph in self._graphs.items():
            self._resize_graph(mode, graph, sized, options, private)
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

    def _owners(self, names: Iterable[str], sized: Mapping[str, Sized]) -> dict[str, Choice]:
        """The one choice that the statistics of a norm depend on, for those that have one.

        None if there are several or none yet, or if channels are kept one by one: statistics then are those
        of the channel, whichever others are kept.
        """
        sizing = {one.choice for one in sized.values()}
        first: dict[Mode, dict[str, fx.Node]] = {
            mode: _first_uses(graph) for mode, graph in self._graphs.items()
        }
        found: dict[str, Choice] = {}
        for name in names:
            dims = self._facts.elastics_of(name)
            own = {sized[e].choice for e in dims if e in sized}
            choices = own or {choice for choice in sizing if self._precedes(choice, name, first)}
            if len(choices) == 1 and not any(e in self._picked for e in dims):
                found[name] = self._choices[next(iter(choices))]
        return found

    def _precedes(self, choice: str, state: str, first: Mapping[Mode, dict[str, fx.Node]]) -> bool:
        """Whether a choice is decided before anything uses the state of this name."""
        uses = ((self._decisions[mode, choice], used.get(state)) for mode, used in first.items())
        return not any(use is not None and use < decision for decision, use in uses)

    def _private(self, name: str, choice: Choice, sized: Mapping[str, Sized]) -> list[str]:
        """State names per column; the full column is the source's own buffer."""
        source = self._tensors[name]
        out: list[str] = []
        for column in range(choice.width):
            if choice.row(column) == choice.full:
                out.append(name)
                continue
            widths = {e: one.sizes[column] for e, one in sized.items() if one.choice == choice.name}
            index = self._facts.kept(name, 0, widths)
            value = source.detach().index_select(0, index.to(source.device))
            out.append(self.add_state(f"{_STATISTICS}.{choice.name}.{column}.{name}", value))
        return out

    def _resize_graph(
        self,
        mode: Mode,
        graph: fx.Graph,
        sized: Mapping[str, Sized],
        options: Mapping[str, list[str]],
        private: Mapping[str, Choice],
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
            return None if names is None else self._pick(mode, graph, node, names, private[str(node.target)])

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

    def _pick(self, mode: Mode, graph: fx.Graph, node: fx.Node, names: list[str], choice: Choice) -> fx.Node:
        """A node that holds the statistics of the present column."""
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


def _first_uses(graph: fx.Graph) -> dict[str, fx.Node]:
    """State name -> the first node that uses it."""
    first: dict[str, fx.Node] = {}
    for node in graph.nodes:
        for read in node.all_input_nodes:
            if read.op == "get_attr":
                first.setdefault(str(read.target), node)
    return first
