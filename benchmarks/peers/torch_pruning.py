"""Torch-Pruning (DepGraph): half of the channels by magnitude, set up as its quick start does.

Layers with as many outputs as the model has classes are left alone, as its quick start has it; nothing else
is said about a model. A pruner has no full width to return to, and drops no blocks.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks.peers.subject import Converted
from dyncompile.verify.compare import plain

pruning: Any = importlib.import_module("torch_pruning")
RATIO = 0.5


def convert(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Converted:
    """See `benchmarks.peers.subject.Contender`."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    with torch.no_grad():
        out = next(v for v in pytree.tree_leaves(plain(model(*args, **kwargs))) if isinstance(v, Tensor))
    heads = [
        layer
        for layer in model.modules()
        if (isinstance(layer, nn.Linear) and layer.out_features == out.shape[-1])
        or (isinstance(layer, nn.Conv2d) and layer.out_channels == out.shape[-1])
    ]
    pruner = pruning.pruner.MagnitudePruner(
        model,
        args or kwargs,
        importance=pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        ignored_layers=heads,
    )
    pruner.step()
    left = {name: parameter.shape for name, parameter in model.named_parameters()}
    changed = frozenset(name for name, shape in shapes.items() if left.get(name) != shape)
    if not changed:
        raise ValueError("pruned without an error, and no tensor is smaller")
    return Converted(full=None, smallest=model, elastic=changed, skippable=frozenset(), blocks=0)
