"""Random values where constructors leave constants, so that checks on random models are not vacuous.

A fresh model hides errors: a zero-initialized head or last norm of a branch blocks every gradient behind it,
unit gains and zero biases make a permuted or shifted channel look right, and running statistics of 0 and 1
make batch norm the identity. Arbitrary statistics are no better: over 50 layers the signal dies out until the
output is a constant (measured: 1e-8 between two images in MobileNetV2), so they start from a real forward.
"""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dyncompile.errors import SpecError
from dyncompile.zoo.inputs import Inputs, example_inputs

Model = TypeVar("Model", bound=nn.Module)

_CONSTANT = 1e-4
"""A parameter whose standard deviation is below this counts as a constant (class tokens start at 1e-6)."""
_SMALL = 0.11
"""Constants up to this are layer scales that start nearly closed; opened, or no check sees their branch."""


@torch.no_grad()
def randomize(model: Model, seed: int = 0, inputs: Inputs | None = None) -> Model:
    """Randomizes, in place, constant parameters and running statistics; the rest keeps its initialization.

    Gains (norm weights, layer scales) become uniform in [0.5, 1.5] times their own size, biases normal with a
    standard deviation of 0.1, zero weights normal with a standard deviation of fan_in ** -0.5. Statistics
    become those of ``inputs`` (by default what `example_inputs` finds, if anything), each moved a little.
    """
    random = torch.Generator().manual_seed(seed)
    randomize_constants(model, random)
    if _norms(model):
        _measure(model, random, inputs or _found(model, seed))
    return model


@torch.no_grad()
def randomize_constants(model: nn.Module, random: torch.Generator) -> None:
    """Only the parameters' part of `randomize`."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.numel() and _is_constant(parameter):
            parameter.copy_(_replacement(name, parameter, random))


def _norms(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(getattr(m, "running_var", None), Tensor)]


def _found(model: nn.Module, seed: int) -> Inputs | None:
    rng: Any = torch.random  # its functions are annotated in part
    with rng.fork_rng(devices=[]), suppress(SpecError):
        rng.manual_seed(seed)
        return example_inputs(model)
    return None


def _measure(model: nn.Module, random: torch.Generator, inputs: Inputs | None) -> None:
    """Sets running statistics in one forward of a copy: some models cache what they compute in eval mode."""
    trial = copy.deepcopy(model).eval()
    for norm in _norms(trial):
        if inputs is None:
            _move(norm, random)
        else:
            _settle_in_forward(norm, random)
    if inputs is not None:
        trial(*inputs[0], **inputs[1])
    for norm, settled in zip(_norms(model), _norms(trial), strict=True):
        norm.running_mean.copy_(settled.running_mean)
        norm.running_var.copy_(settled.running_var)


def _settle_in_forward(norm: Any, random: torch.Generator) -> None:
    """The norm takes the statistics of its first input, moves them and answers in eval mode, so that the next
    norms measure what they will meet. Only norms train here: nothing is dropped at random.
    """

    def settle(module: Any, args: tuple[Tensor, ...], output: object) -> object:
        del output  # normalized by the batch's own statistics
        hook.remove()
        _move(module.eval(), random)
        return module(*args)

    norm.train().momentum = 1.0
    hook = norm.register_forward_hook(settle)


def _move(norm: Any, random: torch.Generator) -> None:
    mean, variance = norm.running_mean, norm.running_var
    mean.add_(0.1 * variance.sqrt() * _normal(mean, random).to(variance))
    variance.mul_(_gain(variance, random).to(variance))


def _is_constant(parameter: Tensor) -> bool:
    return bool(parameter.double().std(correction=0) < _CONSTANT)


def _replacement(name: str, parameter: Tensor, random: torch.Generator) -> Tensor:
    value = parameter.flatten()[0].item()
    if abs(value) > _SMALL:
        return value * _gain(parameter, random)
    if name.endswith("bias"):
        return 0.1 * _normal(parameter, random)
    if value or parameter.ndim < 2:
        return _gain(parameter, random)
    return parameter[0].numel() ** -0.5 * _normal(parameter, random)


def _normal(like: Tensor, random: torch.Generator) -> Tensor:
    """Drawn on the CPU, so that a seed gives the same model on every device."""
    return torch.randn(like.shape, generator=random)


def _gain(like: Tensor, random: torch.Generator) -> Tensor:
    return 0.5 + torch.rand(like.shape, generator=random)
