"""Reads mutated files, and records whatever comes of it that is not the library's own error."""

from __future__ import annotations

import os
import random
import resource
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor, nn

import dyncompile as dc
from benchmarks.fuzz.mutations import mutate
from benchmarks.fuzz.watch import watching
from benchmarks.record import write
from dyncompile.foreign import load_state, read_state_dict

COUNT = 10_000
LARGEST = 200
"""MB by which one input may raise the most memory that the process ever held."""


@dataclass
class Outcome:
    """What came of the inputs: how many of each kind, and everything that should not have happened."""

    counts: Counter[str] = field(default_factory=Counter[str])
    failures: list[str] = field(default_factory=list[str])


def network() -> nn.Module:
    """Small, with all that checkpoints hold: norms, statistics, a counter."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    ).eval()


class _Shift(nn.Module):
    """Adds a number that depends on the size of the map: a capture holds it as a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tensor([x.shape[-1] / 8])


def network_of_sizes() -> nn.Module:
    """`network` with something of its own, besides norms, at every size of the image."""
    layers = list(network().children())
    return nn.Sequential(*layers[:2], _Shift(), *layers[2:]).eval()


SIZED = "sized"
"""The folder of a checkpoint that holds graphs of several image sizes.

Its source is captured at each of them, which takes long and reads none of these graphs: nearly all inputs of
this kind are read without it.
"""


def prepare(folder: Path) -> dict[str, Path]:
    """Sound files to start from: what is read -> the folder or the file."""
    x = torch.randn(2, 3, 8, 8)
    dyn = dc.dynamize(network(), "dsnet(divisor=1, minimum=1, gate=False)", x)
    sized = dc.dynamize(network_of_sizes(), "resolution(sizes=(4, 6), predictor=none)", x)
    state = network().state_dict()
    dc.save(dyn, folder / "saved")
    dc.save(dyn, folder / "sharded", shard_size=100)
    dc.save(sized, folder / SIZED)
    torch.save(state, folder / "new.pth")
    torch.save({"state_dict": state}, folder / "old.pt", _use_new_zipfile_serialization=False)
    save_file(state, folder / "plain.safetensors")
    return {path.name: path for path in folder.iterdir()}


def run_inputs(count: int, seed: int, folder: Path, show: Callable[[Any], Any] = iter) -> Outcome:
    """Mutate and read `count` inputs in `folder`, which is created."""
    draw, outcome = random.Random(seed), Outcome()
    (folder / "sound").mkdir(parents=True)
    sound = prepare(folder / "sound")
    for number in show(range(count)):
        place, name = folder / "input", draw.choice([*sound, SIZED, SIZED])
        place.mkdir()
        kind = mutate(draw, sound[name], place / name, folder / "owned")
        result, wrong = _watched(place / name, alone=draw.random() < (0.97 if name == SIZED else 0.7))
        if sorted(os.listdir(folder)) != ["input", "sound"]:
            wrong.append("wrote outside")
        outcome.counts.update((kind, result, *[f"{SIZED} {result}"] * (name == SIZED)))
        outcome.failures += [f"{seed}:{number} {name} {kind}: {one}"[:300] for one in wrong]
        shutil.rmtree(place)
    return outcome


def _watched(target: Path, *, alone: bool) -> tuple[str, list[str]]:
    """(what came of reading, what should not have happened)."""
    peak, wrong, result = _peak(), list[str](), "read"
    with watching(str(target.parent)) as seen:
        try:
            _read(target, alone=alone)
        except dc.DyncompileError:
            result = "refused"
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever else it is, it is what is looked for
            result = "failed"
            wrong.append(f"{type(error).__name__}: {error}")
    if _peak() - peak > LARGEST:
        wrong.append(f"took {_peak() - peak} MB")
    return result, [*wrong, *seen]


def _peak() -> int:
    """The most memory that the process has held so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def _read(target: Path, *, alone: bool) -> None:
    """As users do: a folder `alone` or with its source, a file into its architecture."""
    if target.is_dir():
        source = network_of_sizes if target.name == SIZED else network
        dc.load(target, source=None if alone else source())
    else:
        load_state(network(), read_state_dict(target))


def run(count: int = COUNT, seed: int = 0) -> dict[str, Any]:
    """Figures by label; raises SystemExit where anything went wrong."""
    before, began = _peak(), time.process_time()

    def shown(numbers: Any) -> Any:
        return track(numbers, description="fuzz", console=Console(stderr=True))

    with tempfile.TemporaryDirectory() as folder:
        outcome = run_inputs(count, seed, Path(folder).resolve() / "work", shown)
    figures = {
        **dict(outcome.counts),
        "failures": len(outcome.failures),
        "peak memory grew by MB": _peak() - before,
        "CPU seconds": round(time.process_time() - began),
    }
    write("fuzz", {"inputs": count, "seed": seed, **figures})
    if outcome.failures:
        raise SystemExit("\n".join(outcome.failures))
    return figures
