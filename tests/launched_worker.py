"""A user's training script, under whichever launcher: ``... tests/launched_worker.py DIRECTORY``.

`fit` is told nothing of processes or precision. Every process writes what it found.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from dyncompile.train import Moment, fit
from tests.train_support import images, perceptron, plain, recipe, task


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    kinds: set[str] = set()

    def watched(moment: Moment) -> torch.Tensor:
        kinds.add(str(moment.record.output.dtype))
        return task(moment)

    dyn = perceptron()
    history = fit(dyn, recipe(plain(watched)), images(), batch_size=2, accumulate=2, progress=False)
    rank, count = 0, 1
    if torch.distributed.is_initialized():
        rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
        torch.distributed.destroy_process_group()
    weight = dyn.get_parameter("inner.weight").detach()
    found = {
        "processes": count,
        "losses": history.losses,
        "dtypes": sorted(kinds),
        "sum": float(weight.sum()),
    }
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
