"""Decision nets: small networks in the graph that read a value of the trunk and give a choice's logits.

    h = relu(W1 . pooled x + b1)                        x [B, ..., C, ...] -> h [B, hidden]
    logits = W2 . h + b2                                [B, width]

Pooling is the mean over all positions, or, for maps [B, C, H, W], over the cells of a grid: a gate early in a
network then sees shapes, not only shares. W2 starts at zero and b2 favors the full column (for gains, whose
logits are the gains themselves, b2 is 1), so that an untrained net reproduces the source. There is no batch
norm in a decision net: a batch of one sample is what it decides for in the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from dyncompile.analysis.flow import memory_of, writers_of, written
from dyncompile.analysis.points import Point
from dyncompile.errors import SpecError
from dyncompile.program import Choice, Domain, copy_graph
from dyncompile.runtime import ops
from dyncompile.seeds import generator_of
from dyncompile.torchlib import fake_copy, nodes_in

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Gate:
    """A decision net to insert.

    Attributes:
        point: the value that it reads.
        hidden: width of its hidden layer; 0 has none, features go to the head.
        confidence: probability of the full column (of every bit) before training, in (0, 1); gains are 1.
        grid: cells per side that a map is pooled to; other layouts have one mean.
        trunk: another choice, whose decision net's hidden layer this one reads: a second head.
    """

    point: Point
    hidden: int
    confidence: float = 0.9
    grid: int = 1
    trunk: str = ""

    def __post_init__(self) -> None:
        if self.hidden < 0 or self.grid < 1 or not 0 < self.confidence < 1:
            raise SpecError(f"a gate needs hidden >= 0, grid >= 1, confidence in (0, 1), got {self}")

    @property
    def cells(self) -> tuple[int, int] | None:
        """Rows and columns that a map is pooled to; None where one mean is taken."""
        is_map = len(self.point.shape) == 3 and self.point.channels == 1
        if self.grid == 1 or not is_map:
            return None
        return min(self.grid, self.point.shape[1]), min(self.grid, self.point.shape[2])

    def parameters(self, choice: Choice) -> dict[str, nn.Parameter]:
        """Initial parameters by layer; random ones depend on the choice's name alone."""
        features = self.point.shape[self.point.channels - 1] * math.prod(self.cells or (1,))
        generator = generator_of(choice.name)
        bound = 1 / math.sqrt(features)
        head = {
            "head.weight": nn.Parameter(torch.zeros(choice.width, self.hidden or features)),
            "head.bias": nn.Parameter(_initial_bias(choice, self.confidence)),
        }
        if not self.hidden or self.trunk:
            return head
        return {
            "reduce.weight": nn.Parameter(_uniform((self.hidden, features), bound, generator)),
            "reduce.bias": nn.Parameter(_uniform((self.hidden,), bound, generator)),
            **head,
        }


def _uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) * (2 * bound) - bound


def _initial_bias(choice: Choice, confidence: float) -> Tensor:
    """Logits of the full row: gains of 1 themselves, else what gives its columns probability `confidence`."""
    full = torch.tensor(choice.full)
    if choice.domain is Domain.GAINS:
        return full
    if choice.domain is Domain.BITS:
        return (2 * full - 1) * math.log(confidence / (1 - confidence))
    return full * math.log(confidence * max(choice.width - 1, 1) / (1 - confidence))


Read = Callable[[fx.Graph, str], fx.Node]
"""Makes a node of a parameter of the decision net: ``"head.weight"``."""


def insert_trunk(graph: fx.Graph, x: fx.Node, gate: Gate, read: Read) -> fx.Node:
    """Insert the hidden layer of a decision net after its pooled features [B, n]: [B, hidden]."""
    return _call(graph, aten.relu.default, (_linear(graph, x, "reduce", read),)) if gate.hidden else x


def insert_head(graph: fx.Graph, hidden: fx.Node, read: Read) -> fx.Node:
    """Insert the last layer of a decision net: the logits [B, width]."""
    return _linear(graph, hidden, "head", read)


def _linear(graph: fx.Graph, x: fx.Node, layer: str, read: Read) -> fx.Node:
    with graph.inserting_after(x):
        bias = read(graph, f"{layer}.bias")
        weight = read(graph, f"{layer}.weight")
    return _call(graph, aten.linear.default, (x, weight, bias), bias)


def insert_pooling(graph: fx.Graph, x: fx.Node, gate: Gate) -> fx.Node:
    """Insert what a decision net sees of its point `x`, right after it: [B, features]."""
    return _pooled(graph, x, gate, x)


def _pooled(graph: fx.Graph, x: fx.Node, gate: Gate, after: fx.Node) -> fx.Node:
    if gate.cells is not None:
        x = _call(graph, aten.adaptive_avg_pool2d.default, (x, list(gate.cells)), after)
        return _call(graph, aten.flatten.using_ints, (x, 1))
    rank = len(gate.point.shape) + 1
    positions = [axis for axis in range(1, rank) if axis != gate.point.channels]
    return _call(graph, aten.mean.dim, (x, positions), after) if positions else x


def _call(graph: fx.Graph, target: Any, args: tuple[Any, ...], after: fx.Node | None = None) -> fx.Node:
    """A call after its last operand, with its abstract value."""
    anchors: list[fx.Node] = nodes_in(args) if after is None else [*nodes_in(args), after]
    with graph.inserting_after(max(anchors)):
        node = graph.call_function(target, args)
    like = next(n.meta["val"] for n in nodes_in(args) if n.op != "get_attr")
    node.meta["val"] = fake_copy(target, args, like)
    return node


def without_gates(source: fx.Graph) -> fx.Graph:
    """A copy in which policies decide without logits, and nothing runs that only decisions read.

    What is written into memory that others read, or that outlives the graph, is no decision's own.
    """
    graph = copy_graph(source)
    writers, memory = writers_of(graph), memory_of(graph.nodes, {})
    deciding, needed = set[fx.Node](), set[fx.Node]()
    for node in reversed(list(graph.nodes)):
        read = {n for n in (*node.all_input_nodes, *writers[node].values()) if n.op != "placeholder"}
        if node.target is ops.decide:
            deciding |= read
            node.args = node.args[:2]
        elif node in deciding - needed and not node.users and not _outlives(node, memory):
            deciding |= read
            graph.erase_node(node)
        else:
            needed.update(writers[node].values())
    return graph


def _outlives(node: fx.Node, memory: Mapping[fx.Node, fx.Node]) -> bool:
    """Whether a node writes into state or an input."""
    return any(memory[changed].op != "call_function" for changed in written(node))
