"""Inference: batch norms folded, no gradients, what decisions drop not run."""

from __future__ import annotations

from typing import Any

import torch

from dyncompile.deploy.norms import fold_norms
from dyncompile.errors import SpecError
from dyncompile.policies import Policy
from dyncompile.program import Program
from dyncompile.runtime.model import DynamicModel, Execution, Record


class Deployed(DynamicModel):
    """A dynamic model for inference. It stays in evaluation mode and computes no gradients.

    Rows part at decisions by what was decided for them and meet again where nothing tells them apart; each
    group runs at its own sizes, on views of one set of weights; a branch runs for the rows that take it.
    Results come in the order of the batch. Calls from several threads give the same results.
    """

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.requires_grad_(False).train(False)
        for model in (self,) if self.by_size is None else self.by_size.models:
            for asks in (False, True):  # made now, not at the first call: calls may come side by side
                model._cut(asks=asks)

    def record(self, *args: Any, policy: Policy, execution: Execution = "sparse", **kwargs: Any) -> Record:
        """See `DynamicModel.record`; outputs and routes are inference tensors."""
        with torch.inference_mode():
            return super().record(*args, policy=policy, execution=execution, **kwargs)

    def train(self, mode: bool = True) -> Deployed:
        """Does nothing: the training graph is gone."""
        return super().train(False)


def deploy(dyn: DynamicModel, *, backend: str = "eager") -> Deployed:
    """A copy of a dynamic model for inference.

    ``fast(x)`` decides by the model's policy (its gates), ``fast.run(x, policy=...)`` by any other, at any
    batch size. Outputs agree with those of `dyn` in evaluation mode up to rounding: batch norms are folded
    into the contractions before them, except where their statistics are private to a choice's column.

    Args:
        dyn: any dynamic model; it stays as it is, and later training of it does not reach the copy.
        backend: "eager" is the only one so far.

    Raises:
        SpecError: another backend.
    """
    if backend != "eager":
        raise SpecError(f"there is no backend {backend!r}", fix='there is "eager"')
    fast = Deployed(fold_norms(dyn.program))
    fast.policy, fast.costs = dyn.policy, dyn.costs
    return fast
