"""Folding batch norms into the contractions before them, once weights no longer move.

    y = (conv(x, W) + b - mean) * s + beta,   s = gamma / sqrt(var + eps)
      = conv(x, W * s) + beta + (b - mean) * s                               W: [O, ...], all others [O]

Where W is mixed from bases, W0 + sum_n a_n D_n, both W0 and all D are multiplied.

The state is folded at full size, under names that the graph reads already: W * s goes by the name of W, the
new bias by that of the running mean. So what decisions narrow stays narrowed by the same operators.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, fx

from dyncompile.analysis.dims.call import bind
from dyncompile.program import Program
from dyncompile.resize import narrowing
from dyncompile.runtime import ops, synthesis
from dyncompile.state import state_tensors
from dyncompile.variants import copy_program

aten = torch.ops.aten
_CONTRACTIONS = (
    *(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default),
    *synthesis.LAYERS,
)
"""Those whose weight, or every row's kernel, has the output channels in front."""


def fold_norms(program: Program) -> Program:
    """The evaluation graph with norms folded, as both graphs of a program with its own tensors.

    Norms stay whose statistics a choice picks, that follow no contraction of their own, that norm an axis
    other than its outputs, or that share their weights with other calls: all of them where inputs of several
    sizes have norms of their own.
    """
    new = copy_program(program, {})
    if new.variants is not None:
        return new
    graph, tensors = new.graphs["eval"], state_tensors(new.state)
    reads = Counter(str(node.target) for node in graph.nodes if node.op == "get_attr")
    names = Counter(map(id, tensors.values()))
    for found in list(_norms(graph)):
        own = all(reads[name] == 1 and names[id(tensors[name])] == 1 for name in found.state)
        alike = len({tensors[name].dtype for name in found.state}) == 1
        if own and alike and _is_of_outputs(found, tensors):
            _fold(graph, found, tensors)
    graph.lint()
    return replace(new, graphs={"train": graph, "eval": graph})


@dataclass(frozen=True, slots=True)
class _Norm:
    """A norm after a contraction: both nodes, and what each reads, by argument: name of the state."""

    contraction: fx.Node
    norm: fx.Node
    weights: Mapping[str, str]
    affine: Mapping[str, str]

    @property
    def state(self) -> tuple[str, ...]:
        """Names of all tensors that are folded."""
        return (*self.weights.values(), *self.affine.values())


def _is_of_outputs(found: _Norm, tensors: Mapping[str, Tensor]) -> bool:
    """Whether axis 1, which is normed, holds the contraction's outputs.

    It does where values have as many axes as the weight: [B, O, ...] of [O, ...]. It does not after a linear
    layer at several positions, [B, positions, O], nor after a convolution of one sample, [O, ...].
    """
    return found.norm.meta["val"].dim() == tensors[found.weights["weight"]].dim()


def _norms(graph: fx.Graph) -> Iterator[_Norm]:
    for node in graph.nodes:
        if node.target is not aten.batch_norm.default or bind(node)["training"]:
            continue
        before = cast(fx.Node, bind(node)["input"])
        if before.target not in _CONTRACTIONS or len(before.users) != 1:
            continue
        weights = _read(_operands(before))
        arguments = bind(node)
        affine = _read({name: arguments[name] for name in ("weight", "bias", "running_mean", "running_var")})
        if weights is not None and affine is not None and {"running_mean", "running_var"} <= set(affine):
            yield _Norm(before, node, weights, affine)


def _operands(contraction: fx.Node) -> dict[str, object]:
    """What a contraction multiplies by and adds; kernels per row are linear in their weight and bases."""
    if contraction.target not in synthesis.LAYERS:
        arguments = bind(contraction)
        return {name: arguments[name] for name in ("weight", "bias")}
    kernels, bias = cast("tuple[fx.Node, object]", contraction.args[1:3])
    if kernels.target is not synthesis.synthesize or len(kernels.users) != 1:
        return {"weight": kernels}
    return {"weight": kernels.args[0], "bases": kernels.args[1], "bias": bias}


def _read(operands: Mapping[str, object]) -> dict[str, str] | None:
    """State name by argument, for those that are given; None where one is not its own, plain or narrowed."""
    given = {name: value for name, value in operands.items() if isinstance(value, fx.Node)}
    chains = {name: list(narrowing(value)) for name, value in given.items()}
    if any(chain[-1].op != "get_attr" or any(map(_is_shared, chain)) for chain in chains.values()):
        return None
    return {name: str(chain[-1].target) for name, chain in chains.items()}


def _is_shared(node: fx.Node) -> bool:
    """Whether several calls read its values; positions ask for no more than the device."""
    return sum(user.target is not ops.positions for user in node.users) > 1


@torch.no_grad()
def _fold(graph: fx.Graph, found: _Norm, tensors: Mapping[str, Tensor]) -> None:
    """Fold the state at full size, and let the contraction read it at the place of the norm.

    Folded numbers get memory of their own: an expanded buffer has less of it than numbers, and several
    tensors may show one memory.
    """
    arguments = bind(found.norm)
    weight, mean, variance = (
        tensors[name]
        for name in (found.weights["weight"], found.affine["running_mean"], found.affine["running_var"])
    )
    one = torch.ones_like(variance, dtype=torch.float64)

    def vector(names: Mapping[str, str], argument: str, default: Tensor) -> Tensor:
        return tensors[names[argument]].double() if argument in names else default

    factor = vector(found.affine, "weight", one) / (variance.double() + arguments["eps"]).sqrt()
    before = vector(found.weights, "bias", 0 * one) - mean.double()
    bias = vector(found.affine, "bias", 0 * one) + before * factor
    factor = factor.reshape(-1, *[1] * (weight.dim() - 1))
    for multiplied in (weight, *(tensors[name] for key, name in found.weights.items() if key == "bases")):
        multiplied.data = (multiplied.double() * factor).to(multiplied.dtype)
    mean.data = bias.to(mean.dtype)
    _replace(graph, found, arguments["running_mean"])


def _replace(graph: fx.Graph, found: _Norm, bias: fx.Node) -> None:
    with graph.inserting_before(found.norm):
        new = graph.node_copy(found.contraction)
    new.args = (*new.args[:2], bias, *new.args[3:])
    new.kwargs = {name: value for name, value in new.kwargs.items() if name != "bias"}
    new.meta = {**found.contraction.meta, "val": found.norm.meta["val"]}
    found.norm.replace_all_uses_with(new)
    for node in (found.norm, found.contraction):
        graph.erase_node(node)
