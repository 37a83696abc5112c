"""The process that tests kill: the model is made when it is imported, so that a fork of it trains at once."""

from __future__ import annotations

from pathlib import Path

import accelerate  # noqa: F401  # fit would import it, which takes longer than this training
import torch

from tests.train_support import conv_net, run, two_phases

torch.set_num_threads(1)
NET = conv_net()


def train_in(directory: str) -> None:
    """Train to the end in `directory`, going on from what is there; says when it starts."""
    Path(directory).with_suffix(".started").touch()
    run(NET, two_phases(), Path(directory), checkpoint_every=2)
