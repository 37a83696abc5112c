"""What the tests of the core share: networks captured once, dynamic models made from them, comparisons."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dyncompile.analysis.facts import Facts, analyze
from dyncompile.capture import capture
from dyncompile.pipeline import apply_passes
from dyncompile.policies import Learned
from dyncompile.program import Program, Route
from dyncompile.runtime.model import DynamicModel
from dyncompile.signature import bind_call, forward_signature
from dyncompile.spec import parse_specs
from dyncompile.variants import copy_program
from dyncompile.zoo.inputs import as_inputs
from tests.nets import Net

Make = Callable[[], tuple[nn.Module, Any]]
"""A network of `tests.handmade`: returns a module and its example input."""

FINE = "divisor=1, minimum=1, gate=False"
"""Fields of a slicing pass under which every elastic dim of a small network has something to choose."""
ALL = f"dsnet({FINE})"


@dataclass(frozen=True)
class Subject:
    """A source model, its example call and its program. Shared by many tests: nobody may change it."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @cached_property
    def program(self) -> Program:
        return capture(self.module, self.args, self.kwargs)

    @cached_property
    def facts(self) -> Facts:
        return analyze(self.program)

    @property
    def flat(self) -> list[Any]:
        """The example call as flat graph inputs."""
        return self.program.signature.flatten(self.args, self.kwargs)

    def dynamic(self, method: Any = ALL, **config: Any) -> DynamicModel:
        """A dynamic model with its own tensors, in evaluation mode."""
        passes = parse_specs(method, config)
        return DynamicModel(apply_passes(copy_program(self.program, {}), passes)).eval()

    def expected(self) -> Any:
        """What the source computes in evaluation mode."""
        with torch.no_grad():
            return self.module.eval()(*self.args, **self.kwargs)


@cache
def subject(make: Make) -> Subject:
    """The network of a maker, made and captured once per process."""
    module, example = make()
    return Subject(module.eval(), *as_inputs(example))


def subject_of(net: Net) -> Subject:
    """A drawn network."""
    return Subject(net.module.eval(), net.args, net.kwargs)


def example_of(net: Net) -> Any:
    """The inputs of a drawn network as `dynamize` takes them: a tuple, or a dict where some go by keyword."""
    if not net.kwargs:
        return net.args
    return bind_call(forward_signature(net.module), net.args, net.kwargs)


def leaves(value: Any) -> list[Tensor]:
    """All tensors of an output."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def relative(expected: Any, actual: Any) -> float:
    """Largest absolute difference over the largest magnitude, of two structures of equal shapes."""
    found = [leaf.detach().double() for leaf in leaves(expected)]
    pairs = list(zip(found, (leaf.detach().double() for leaf in leaves(actual)), strict=True))
    assert all(a.shape == b.shape for a, b in pairs)
    apart = max(float((a - b).abs().max()) for a, b in pairs)
    scale = max(float(a.abs().max()) for a, _ in pairs)
    return apart / (scale or 1.0)


def same(expected: Any, actual: Any) -> bool:
    """Whether two structures hold the same tensors, bit for bit and in the same dtypes."""
    pairs = list(zip(leaves(expected), leaves(actual), strict=True))
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def columns(route: Route) -> dict[str, list[int]]:
    """The columns that a one-hot route picks, per choice and row."""
    return {name: rows.argmax(1).tolist() for name, rows in route.items()}


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all state, non-persistent buffers included."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


@torch.no_grad()
def undecided(dyn: DynamicModel, args: Sequence[Any], seed: int = 0) -> DynamicModel:
    """A copy with random decision nets that switch gains off for about half of the rows in `args`."""
    dyn = copy.deepcopy(dyn)
    random = torch.Generator().manual_seed(seed)
    for name, parameter in dyn.named_parameters():
        if name.startswith("dyn.gates."):
            parameter.copy_(torch.randn(parameter.shape, generator=random))
    for choice in dyn.gated:  # in order: later features depend on earlier decisions
        logits = dyn.record(*args, policy=Learned()).logits[choice]
        dyn.get_parameter(f"dyn.gates.{choice}.head.bias").sub_(logits.median(0).values - 0.1)
    return dyn
