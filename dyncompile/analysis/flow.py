"""The data flow of one captured graph: which nodes depend on an input, through what, and what dominates them.

Parameters, constants and shape arithmetic carry no data: a size read from a tensor, or noise drawn in a
tensor's shape, does not depend on its values. Decisions carry none either, so that analyses see the network,
not its steering. Writing into a view (``attn[:, 1:] += bias``) leaves no edge in the graph: later readers of
that memory name a node from before the write. They depend on the writing node here.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import networkx
import torch
from torch import Tensor, fx

from dyncompile.torchlib import schema_of, tensors_in

Target = Callable[..., Any] | str

CONTRACTIONS = frozenset(
    (
        *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        *("convolution", "linear", "bilinear", "einsum", "matmul", "mm", "bmm", "mv", "addmm", "addbmm"),
        *("baddbmm", "scaled_dot_product_attention", "lstm", "gru", "rnn_tanh", "rnn_relu"),
        *("basis_conv2d", "basis_linear"),
    )
)

_PROJECTING = frozenset(
    (
        *("batch_norm", "avg_pool2d", "adaptive_avg_pool2d", "max_pool2d", "pad", "constant_pad_nd"),
        *("contiguous", "dropout", "flatten", "permute", "reshape", "slice", "transpose", "view"),
    )
)
"""What may stand between the contractions of a projection, as in a depthwise-separable shortcut."""

_FIRST_IS_SHAPE = frozenset(
    (
        *("new_empty", "new_zeros", "new_ones", "new_full", "empty_like", "zeros_like", "ones_like"),
        *("full_like", "rand_like", "randn_like", "randint_like"),
        *("bernoulli_", "fill_", "zero_", "normal_", "uniform_"),
    )
)
"""Operators that read no more of their first operand than its shape, or overwrite all of it."""

_SECOND_IS_SHAPE = frozenset(("view_as", "reshape_as", "expand_as", "type_as"))

_MAY_ALIAS = frozenset(
    (
        *("reshape", "reshape_as", "flatten", "contiguous", "to", "type_as", "dropout", "chunk", "getitem"),
        *("gain", "leave", "mix", "scale"),
    )
)
"""Operators that return a view at times, though their schema does not say so."""


@dataclass(frozen=True)
class Flow:
    """The data-flow digraph of a graph.

    Attributes:
        operands: what each node reads, hidden writes included; `users` is the reverse.
        writers: for each node, those of its inputs that were overwritten since they were made, and by whom.
        sources: for each node that depends on an input, its operands that do and whose values matter.
        order: position of all nodes in the graph; None, a virtual root above all inputs, comes first.
        dominator: the immediate dominator of each node in `sources`.
        calls: the nodes of each module call.
        dead: nodes that no output depends on: checks, counters, leftovers.
        fixed: decisions; they are nobody's own, since they run whether or not what they steer does.
    """

    operands: Mapping[fx.Node, Sequence[fx.Node]]
    users: Mapping[fx.Node, Sequence[fx.Node]]
    writers: Mapping[fx.Node, Mapping[fx.Node, fx.Node]]
    sources: Mapping[fx.Node, Sequence[fx.Node]]
    order: Mapping[fx.Node | None, int]
    dominator: Mapping[fx.Node, fx.Node | None]
    calls: Mapping[str, Sequence[fx.Node]]
    dead: Collection[fx.Node]
    fixed: Collection[fx.Node]

    @classmethod
    def of(cls, graph: fx.Graph, decisions: Collection[Target] = ()) -> Flow:
        """The flow of `graph`; nodes whose target is in `decisions` carry no data."""
        writers = writers_of(graph)
        operands = {
            node: list(dict.fromkeys((*node.all_input_nodes, *writers[node].values()))) for node in writers
        }
        users: defaultdict[fx.Node, list[fx.Node]] = defaultdict(list)
        calls: defaultdict[str, list[fx.Node]] = defaultdict(list)
        sources: dict[fx.Node, list[fx.Node]] = {}
        for node, read in operands.items():
            calls[_module_call(node)].append(node)
            for operand in read:
                users[operand].append(node)
            if node.op in ("get_attr", "output") or node.target in decisions or not carries_tensor(node):
                continue
            beside = _beside(node)
            data = [operand for operand in read if operand in sources and operand is not beside]
            if data or node.op == "placeholder":
                sources[node] = data
        order: dict[fx.Node | None, int] = {node: index for index, node in enumerate(operands)}
        above, dead = dominators(sources), _dead(operands, users)
        fixed = {node for node in operands if node.target in decisions}
        return cls(operands, users, writers, sources, order | {None: -1}, above, calls, dead, fixed)

    def value(self, reader: fx.Node, operand: fx.Node) -> fx.Node:
        """What `reader` finds in `operand`: the node that has written into its memory last."""
        return self.writers[reader].get(operand, operand)

    def meet(self, first: fx.Node | None, *others: fx.Node | None) -> fx.Node | None:
        """The nearest common dominator; a node dominates itself."""
        for other in others:
            while first is not other:
                if self.order[first] < self.order[other]:
                    first, other = other, first
                first = self.dominator[cast(fx.Node, first)]
        return first

    def between(self, upper: fx.Node | None, node: fx.Node) -> set[fx.Node]:
        """Everything on the ways from `upper`, itself left out, to `node`; None: from all inputs."""
        behind: set[fx.Node] = set()
        ahead = [node]
        while ahead:
            here = ahead.pop()
            if here is not upper and here not in behind:
                behind.add(here)
                ahead.extend(self.sources[here])
        if upper is None:
            return behind
        reached = {upper}
        for here in self.sorted(behind):
            if not reached.isdisjoint(self.sources[here]):
                reached.add(here)
        return reached - {upper}

    def sorted(self, nodes: Iterable[fx.Node]) -> list[fx.Node]:
        """In topological order."""
        return sorted(nodes, key=lambda node: self.order[node])

    def contracts(self, node: fx.Node) -> bool:
        """Whether the node contracts data with something that is no data: with a parameter."""
        if node not in self.sources or op_name(node) not in CONTRACTIONS:
            return False
        return any(
            operand not in self.sources and carries_tensor(operand) for operand in node.all_input_nodes
        )

    def contractions(self, nodes: Iterable[fx.Node]) -> int:
        """How many of `nodes` are contractions with parameters."""
        return sum(map(self.contracts, nodes))

    def projects(self, nodes: Iterable[fx.Node]) -> bool:
        """Whether `nodes` are a linear map, or a chain of such, apart from pooling."""
        data = (node for node in nodes if node in self.sources)
        return all(self.contracts(node) or op_name(node) in _PROJECTING for node in data)

    def exclusive(self, output: fx.Node, exit: fx.Node) -> set[fx.Node]:
        """The nodes that run so that `exit` can read `output`, and for nothing else; none if others read it.

        Side effects that are theirs alone are included: checks, batch counters.
        """
        ends = {output, self.value(exit, output)}
        if self._is_used_later(ends, exit):
            return set()  # before a walk that would go back to the inputs for every stream
        members = self._grown(ends)
        members = self._grown(members | self._counters(members))
        users = {user for end in ends for user in self.uses(end)} - members
        return members if users == {exit} and output.op != "placeholder" else set()

    def _is_used_later(self, ends: set[fx.Node], exit: fx.Node) -> bool:
        """Whether something behind all of `ends`, and so no part of what they need, uses one of them."""
        last = max(self.order[end] for end in ends)
        return any(user is not exit and self.order[user] > last for end in ends for user in self.uses(end))

    @cached_property
    def rewritten(self) -> Collection[fx.Node]:
        """Nodes into whose memory, or that of a view of it, another node writes after they are made."""
        memory = memory_of(self.operands, {})
        known: defaultdict[fx.Node, list[fx.Node]] = defaultdict(list)
        found: set[fx.Node] = set()
        for node in self.operands:
            for changed in written(node):
                found.update(known[memory[changed]])
            known[memory[node]].append(node)
        return found

    def uses(self, node: fx.Node) -> list[fx.Node]:
        """The users that count: all but dead ends."""
        return [user for user in self.users.get(node, ()) if user not in self.dead]

    def _grown(self, seeds: set[fx.Node]) -> set[fx.Node]:
        # Latest first: when a node's turn comes, its users have had theirs.
        ahead = [(-self.order[seed], seed) for seed in seeds]
        heapq.heapify(ahead)
        grown: set[fx.Node] = set()
        while ahead:
            node = heapq.heappop(ahead)[1]
            own = node.op != "placeholder" and node not in self.fixed
            needless = own and grown.issuperset(self.uses(node))
            if node in grown or not (node in seeds or needless):
                continue
            fresh = self._with_dead_ends(node)
            grown.update(fresh)
            for operand in {operand for member in fresh for operand in self.operands[member]}:
                heapq.heappush(ahead, (-self.order[operand], operand))
        return grown

    def _with_dead_ends(self, node: fx.Node) -> list[fx.Node]:
        reached = [node]
        for here in reached:
            fresh = (user for user in self.users.get(here, ()) if user in self.dead)
            reached.extend(user for user in fresh if user not in reached)
        return reached

    def _counters(self, members: set[fx.Node]) -> set[fx.Node]:
        """Side effects that read no member (batch counters), of module calls that lie wholly in `members`."""
        names = {_module_call(node) for node in members if node in self.sources} - {""}
        calls = [self.calls[name] for name in names]
        whole = [call for call in calls if all(node in members for node in call if node in self.sources)]
        return {node for call in whole for node in call if node in self.dead and not self.users.get(node)}


def dominators(sources: Mapping[fx.Node, Sequence[fx.Node]]) -> dict[fx.Node, fx.Node | None]:
    """The immediate dominator of every node that one without sources leads to; None for those."""
    # networkx refuses None as a node, hence a word for the virtual root.
    edges = [(source, node) for node, read in sources.items() for source in (read or ("root",))]
    if not edges:
        return {}
    above = cast("dict[Any, Any]", cast(Any, networkx).immediate_dominators(networkx.DiGraph(edges), "root"))
    return {node: None if above[node] == "root" else above[node] for node in sources if node in above}


def carries_tensor(node: fx.Node) -> bool:
    """Whether a tensor is among the node's values; a node of unknown value counts."""
    return "val" not in node.meta or bool(tensors_in(node.meta["val"]))


def tensor(node: fx.Node) -> Tensor:
    """The node's abstract value; an empty tensor if it states none, or none that is a tensor."""
    value = node.meta.get("val")
    return value if isinstance(value, Tensor) else torch.empty(0)


def op_name(node: fx.Node) -> str:
    """The operator without its overload (``add_``); empty where the target has no name."""
    return getattr(getattr(node.target, "overloadpacket", node.target), "__name__", "")


def _module_call(node: fx.Node) -> str:
    """The innermost module call: ``L__self__.layer1.0.bn1``, with ``@1`` when the module is called again."""
    return next(reversed(node.meta.get("nn_module_stack") or ("",)))


def _beside(node: fx.Node) -> object:
    """The operand whose values do not matter, or an early prediction: the network is the final one."""
    if op_name(node) in _FIRST_IS_SHAPE:
        return node.args[0]
    if op_name(node) == "leave":
        return node.args[1]
    return node.args[1] if op_name(node) in _SECOND_IS_SHAPE else None


def writers_of(graph: fx.Graph) -> dict[fx.Node, dict[fx.Node, fx.Node]]:
    """For each node, the inputs whose memory another node has written into since they were made."""
    position = {node: index for index, node in enumerate(graph.nodes)}
    memory = memory_of(graph.nodes, {})
    last: dict[fx.Node, fx.Node] = {}
    writers: dict[fx.Node, dict[fx.Node, fx.Node]] = {}
    for node in graph.nodes:
        latest = [(read, last[memory[read]]) for read in node.all_input_nodes if memory[read] in last]
        writers[node] = {read: writer for read, writer in latest if position[writer] > position[read]}
        last |= {memory[changed]: node for changed in written(node)}
    return writers


def _dead(operands: Iterable[fx.Node], users: Mapping[fx.Node, Sequence[fx.Node]]) -> set[fx.Node]:
    dead: set[fx.Node] = set()
    for node in reversed(list(operands)):
        if node.op != "output" and dead.issuperset(users.get(node, ())):
            dead.add(node)
    return dead


def _aliases(node: fx.Node) -> bool:
    schema = schema_of(node.target)
    stated = schema is not None and any(value.alias_info is not None for value in schema.returns)
    return stated or op_name(node) in _MAY_ALIAS


def memory_of(nodes: Iterable[fx.Node], passed_on: Mapping[fx.Node, fx.Node]) -> dict[fx.Node, fx.Node]:
    """Each node's memory, by the node that made it; nodes in `passed_on` may give that of another node."""
    origin: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        read = node.all_input_nodes
        source = passed_on.get(node, read[0] if read and _aliases(node) else None)
        origin[node] = origin[source] if source is not None else node
    return origin


def written(node: fx.Node) -> Iterator[fx.Node]:
    """The operands whose memory a node writes into."""
    schema = schema_of(node.target)
    for argument, value in zip(schema.arguments if schema else (), node.args, strict=False):
        if isinstance(value, fx.Node) and argument.alias_info is not None and argument.alias_info.is_write:
            yield value
