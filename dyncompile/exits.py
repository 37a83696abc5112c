"""Early exits: how sure a prediction is, and where the output may be one that was made on the way.

    p = softmax(early / T)                                                      early [B, K]
    score = confidence(p) - threshold             stop where it is above 0      [B, 1]

    max      max_k p_k
    entropy  1 - H(p) / log K
    margin   the largest p_k less the second

Confidences lie in [0, 1]; the threshold is `OFF`, above 1, until it is calibrated (``dc.calibrate_exit``).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, fx, nn

from dyncompile.analysis.exits import find_leaves
from dyncompile.errors import SpecError
from dyncompile.program import copy_graph
from dyncompile.runtime import ops

Kind = Literal["max", "entropy", "margin"]
KINDS = ("max", "entropy", "margin")
OFF = 2.0
"""A threshold that nothing reaches."""


class Confidence(nn.Module):
    """Score of an early prediction, ``[B, K] -> [B, 1]``: above 0 it is final."""

    temperature: Tensor
    threshold: Tensor

    def __init__(self, kind: Kind = "max") -> None:
        super().__init__()
        if kind not in KINDS:
            raise SpecError(f"a confidence is one of {', '.join(KINDS)}, got {kind!r}")
        self.kind: Kind = kind
        self.register_buffer("temperature", torch.ones(1))
        self.register_buffer("threshold", torch.full((1,), OFF))

    def forward(self, logits: Tensor) -> Tensor:
        """The score."""
        return confidence(logits / self.temperature, self.kind) - self.threshold


def confidence(logits: Tensor, kind: Kind) -> Tensor:
    """``[B, K] -> [B, 1]``, in [0, 1]."""
    p = logits.softmax(-1)
    if kind == "max":
        return p.amax(-1, keepdim=True)
    if kind == "margin":
        first, second = p.topk(2, -1).values.unbind(-1)
        return (first - second).unsqueeze(-1)
    entropy = -(p * logits.log_softmax(-1)).sum(-1, keepdim=True)
    return 1 - entropy / torch.log(torch.tensor(float(logits.shape[-1]), dtype=entropy.dtype))


def prediction(graph: fx.Graph) -> fx.Node | str:
    """The value that an exit can stand for, or why there is none: one row of class scores per sample.

    What earlier exits give counts: the value is what the output reads.
    """
    output = graph.output_node()
    values = [node for node in output.all_input_nodes if isinstance(node.meta.get("val"), Tensor)]
    if len(values) != 1 or len(values) != len(output.all_input_nodes):
        return (
            f"the model gives {len(output.all_input_nodes)} values, and an early exit has a prediction only"
        )
    value = values[0].meta["val"]
    if value.dim() != 2 or not value.is_floating_point() or not int(value.shape[1]) >= 2:
        return f"its output [{', '.join(map(str, value.shape))}] is no row of class scores per sample"
    return values[0]


def insert_leave(graph: fx.Graph, decision: fx.Node, early: fx.Node) -> fx.Node:
    """Let the output be `early` where a decision says stop. Exits that are decided before stay outside."""
    reader = graph.output_node()
    (value,) = reader.all_input_nodes
    while value.target is ops.leave and value.all_input_nodes[2] < decision:
        reader, value = value, value.all_input_nodes[0]
    with graph.inserting_before(reader):
        new = graph.call_function(ops.leave, (value, early, decision))
    new.meta = {key: content for key, content in value.meta.items() if key != "nn_module_stack"}
    reader.replace_input_with(value, new)
    return new


def without_exits(source: fx.Graph) -> fx.Graph:
    """A copy in which nobody leaves: early predictions that nothing else reads are not made."""
    graph = copy_graph(source)
    for leave in find_leaves(graph):
        leave.node.replace_all_uses_with(leave.node.all_input_nodes[0])  # not `final`, which may be gone
        graph.erase_node(leave.node)
        for node in reversed(leave.own):
            graph.erase_node(node)
    return graph
