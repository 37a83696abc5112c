"""What of a source its graphs do not have, as notes for `explain`."""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
from torch import nn

from dyncompile.torchlib import named_modules

_NAMED = 3
"""As many modules are named in one note."""


def woken(model: nn.Module) -> list[str]:
    """Put a model into training mode; a note where that wakes parts that it held in evaluation mode.

    `.train()` does so to every module, the dynamic model included; only the source's own `train` can
    keep parts as they are, and does so here, too.
    """
    held = {name for name, module in named_modules(model) if model.training and not module.training}
    model.train()
    modules = dict(named_modules(model))
    outer = sorted(n for n in held if modules[n].training and n.rpartition(".")[0] not in held)
    if not outer:
        return []
    more = f" and {len(outer) - _NAMED} more" if len(outer) > _NAMED else ""
    return [
        f"in evaluation mode when the model was given, in training mode where the model is: "
        f"{', '.join(outer[:_NAMED])}{more}; to keep parts so, call their eval() in the model's own `train`"
    ]


@contextmanager
def observed_draws(mode: str, notes: list[str]) -> Generator[None]:
    """Add a note where a forward draws from generators that no graph knows: it keeps what was drawn once."""
    python, numpy = random.getstate(), _numpy_state()
    yield
    drawn = {
        "Python's `random`": random.getstate() != python,
        "NumPy's `np.random`": _numpy_state() != numpy,
    }
    notes += [
        f"forward draws from {name} in {mode} mode: every call repeats what was drawn at capture; "
        "draw from torch instead"
        for name, changed in drawn.items()
        if changed
    ]


def _numpy_state() -> str:
    """The state of NumPy's global generator, to compare."""
    return repr(np.random.get_state())
