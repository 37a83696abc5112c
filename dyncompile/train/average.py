"""The moving average of the weights: DS-Net's teacher."""

from __future__ import annotations

import copy

import torch

from dyncompile.runtime.model import DynamicModel


class Average:
    """``average <- decay * average + (1 - decay) * weights`` after every step, over parameters and
    statistics.

    Integer buffers (counters) are copied. `model` is in evaluation mode and takes no gradients.
    """

    def __init__(self, dyn: DynamicModel, decay: float) -> None:
        self.model = copy.deepcopy(dyn).eval().requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, dyn: DynamicModel) -> None:
        """Move the average a little towards the weights."""
        theirs = (*dyn.parameters(), *dyn.buffers())
        for mine, other in zip((*self.model.parameters(), *self.model.buffers()), theirs, strict=True):
            if mine.is_floating_point():
                mine.lerp_(other, 1 - self._decay)
            else:
                mine.copy_(other)
