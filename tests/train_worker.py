"""One of several processes that train together: ``torchrun ... -m tests.train_worker DIRECTORY``.

Process 0 writes what came out, and whether all processes held the same model at the end.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, distributed
from torch.nn import functional as F
from torch.utils.data import DataLoader

import dyncompile as dc
from dyncompile.policies import Sampled
from dyncompile.train import Moment, Optimization, Phase, Recipe, Turn, fit
from tests.train_support import (
    conv_net,
    images,
    perceptron,
    plain,
    recipe,
    sandwich,
    state_of,
    task,
    two_phases,
)


def averaged() -> Recipe:
    """Means over samples only: it does not matter which process saw which."""
    return recipe(sandwich(task, clip=0.5))


def drawn(moment: Moment) -> Tensor:
    """The column that was drawn; its mean over processes is whole only if all drew the same."""
    return (
        F.cross_entropy(moment.record.output, moment.batch.target) * 0
        + moment.record.route["width"].argmax(1).float().mean()
    )


def widths() -> Recipe:
    turn = Turn(lambda clock: Sampled(clock.seed), {"width": drawn})
    return recipe(Phase("widths", (turn,), epochs=4))


def one_sided(moment: Moment) -> Tensor:
    """Process 0 uses two parameters, others only one, nobody the rest."""
    named = dict(moment.dyn.named_parameters())
    both = named["inner.weight"].square().mean() + named["inner.bias"].square().mean()
    return both if rank() == 0 else named["inner.weight"].square().mean()


def unused() -> Recipe:
    return recipe(plain(one_sided, base=Optimization(rate=1e-2, decay=0.1)))


def rank() -> int:
    return int(os.environ["RANK"])


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {}

    def train(name: str, dyn: dc.DynamicModel, how: Recipe, data: Any, **settings: Any) -> None:
        history = fit(dyn, how, data, progress=False, **{"batch_size": 4, **settings})
        validation = [dict(epoch.validation) for epoch in history.epochs]
        found[name] = {"losses": history.losses, "same": agree(dyn), "validation": validation}
        if rank() == 0:
            save_file(state_of(dyn), folder / f"{name}.safetensors")

    # Weights differ between processes at first: only a broadcast makes them equal.
    train("averaged", perceptron(seed=rank()), averaged(), images())
    train("uneven", perceptron(), averaged(), images(37))
    train("accumulated", perceptron(), averaged(), images(), batch_size=2, accumulate=2)
    train("widths", perceptron(), widths(), images())
    train("unused", perceptron(), unused(), images())
    train("norms", conv_net(), two_phases(), images(), val_data=images(29, seed=2))
    loaders = DataLoader(images(), 4, shuffle=True), DataLoader(images(29, seed=2), 4)
    train("loader", perceptron(), recipe(), loaders[0], val_data=loaders[1])
    train("saved", conv_net(), two_phases(), images(), directory=folder / "run", checkpoint_every=3)
    newest = sorted((folder / "run").glob("step-*"))[-1]
    distributed.barrier()
    if rank() == 0:
        newest.rename(folder / "end")
    distributed.barrier()
    train("resumed", conv_net(seed=5), two_phases(), images(), directory=folder / "run", checkpoint_every=3)
    if rank() == 0:
        (folder / "found.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


def agree(dyn: dc.DynamicModel) -> bool:
    """Whether all processes hold the same tensors."""
    ours = state_of(dyn)
    gathered: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, ours)
    return all(all(torch.equal(one[name], ours[name]) for name in ours) for one in gathered)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
