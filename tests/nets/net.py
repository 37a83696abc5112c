"""The drawn network, and what turns a specification of one into modules, weights and inputs."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Spec:
    """Base of the specifications, which are frozen dataclasses; prints what differs from the defaults."""

    def __repr__(self) -> str:
        shown = [(f.name, getattr(self, f.name), f.default) for f in fields(self)]  # pyright: ignore[reportArgumentType]
        return f"{type(self).__name__}({', '.join(f'{n}={v!r}' for n, v, default in shown if v != default)})"


class Recipe(Protocol):
    """A whole network: builds its module and draws its example inputs, both from torch's global generator."""

    def module(self) -> nn.Module: ...

    def inputs(self) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]: ...


@dataclass(frozen=True, eq=False)
class Net:
    """A plain torch module with example inputs; `recipe` is the expression that builds it again."""

    module: nn.Module
    args: tuple[Tensor, ...]
    kwargs: dict[str, Tensor]
    recipe: str

    def __repr__(self) -> str:
        return self.recipe

    def inputs(self, batch: int, seed: int = 0) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Return inputs at another batch size: fresh floats, repeated rows of ids and masks."""
        generator = torch.Generator().manual_seed(seed)
        args = tuple(_resized(t, batch, generator) for t in self.args)
        return args, {name: _resized(t, batch, generator) for name, t in self.kwargs.items()}

    @property
    def dynamic_shapes(self) -> dict[str, Any]:
        """The `dynamic_shapes` of `torch.export.export` that let dim 0 of every input vary."""
        return dynamic_batch(self.module, self.args, self.kwargs)


def dynamic_batch(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return `dynamic_shapes` by parameter name of `module.forward`, with dim 0 of every input dynamic."""
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    return {name: {0: torch.export.Dim.DYNAMIC} for name in bound.arguments}


def assemble(spec: Recipe, seed: int) -> Net:
    """Build the network of `spec`, its weights and its inputs, all of them determined by `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = randomize(spec.module())
        args, kwargs = spec.inputs()
    return Net(module, args, kwargs, f"assemble({spec!r}, seed={seed})")


@torch.no_grad()
def randomize(module: nn.Module) -> nn.Module:
    """Perturb what torch initializes to constants (norm affines, biases, tokens, scales, running statistics).

    Otherwise gradient checks are vacuous and a wrong slice of a constant vector goes unseen.
    """
    for parameter in module.parameters():
        if parameter.numel() == max(parameter.shape, default=1):
            # The shift keeps the few units of a layer before a ReLU from all being dead.
            parameter.add_(0.2 + 0.3 * torch.randn_like(parameter))
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.3)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return module


def _resized(tensor: Tensor, batch: int, generator: torch.Generator) -> Tensor:
    if tensor.is_floating_point():
        return torch.randn(batch, *tensor.shape[1:], generator=generator, dtype=tensor.dtype)
    return tensor[torch.arange(batch) % len(tensor)]
