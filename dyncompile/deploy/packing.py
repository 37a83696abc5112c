"""Mixing fewer numbers, once weights no longer move.

    W0 + sum_n a_n D_n  =  (1 - sum_n a_n) W0 + sum_n a_n V_n,   V_n = W0 + D_n            W0 [*W], D [N, *W]

Where coefficients sum to one, W0 is not read: N kernels are mixed instead of N + 1. With other coefficients,
of a forced route or at full capacity, it is. Values agree up to rounding, and at full capacity exactly.
"""

from __future__ import annotations

import torch
from torch import fx

from dyncompile.program import Program
from dyncompile.resize import narrowing
from dyncompile.runtime.synthesis import synthesize
from dyncompile.state import BASES, STATE_PREFIX, state_tensors


@torch.no_grad()
def pack_bases(program: Program) -> None:
    """Let bases whose coefficients sum to one be whole kernels, in place: V under the name of D.

    Networks of several sizes share their bases, and keep D. Those that are whole already stay.
    """
    if program.variants is not None:
        return
    tensors = state_tensors(program.state)
    convex = {
        f"{STATE_PREFIX}.{BASES}.{weight}": weight
        for plan in program.plans
        for weight, one in plan.synthesized.items()
        if one.convex
    }
    graph, packed = program.graphs["eval"], set[str]()
    for node in graph.nodes:
        if node.target is not synthesize or _is_whole(node):
            continue
        name = str(list(narrowing(node.args[1]))[-1].target)
        if name in convex:
            node.args = (*node.args[:5], True)
            packed.add(name)
    for name in packed:
        tensors[name].add_(tensors[convex[name]])


def _is_whole(node: fx.Node) -> bool:
    return len(node.args) > 5 and bool(node.args[5])
