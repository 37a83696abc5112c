"""The processes that tests kill while they save or convert; models are made when this is imported."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import torch

import dyncompile as dc
from dyncompile.cli import convert
from tests.tiny import conv_net

torch.set_num_threads(1)
torch.manual_seed(0)
NET, EXAMPLE = conv_net()
SPECS = ("dsnet(divisor=1, gate=False)", "dsnet(divisor=1, gate=False, per=dim)")
MODELS = tuple(dc.dynamize(NET, spec, EXAMPLE).eval() for spec in SPECS)
"""Two models that cannot be loaded from each other's files."""


def save_on(directory: str) -> None:
    """Save one and the other, in shards and whole, until killed."""
    folder = Path(directory)
    folder.with_suffix(".started").touch()
    while True:
        for model in MODELS:
            dc.save(model, folder, shard_size=5000 if model is MODELS[0] else 1 << 30)


def convert_on(directory: str, weights: str) -> None:
    """Convert with the one method and the other until killed. The contract is not under test here."""
    convert.verify = lambda *given: dc.Report(())
    folder = Path(directory)
    folder.with_suffix(".started").touch()
    while True:
        for spec in SPECS:
            convert.convert_checkpoint(Path(weights), "tests.tiny:conv_net", [spec], folder, nullcontext)
