"""What runs of every training benchmark share: timed stages, results that are kept, no warnings."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from benchmarks.record import machine

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")


@dataclass(frozen=True)
class Stages:
    """Seconds of `clock` that each stage of a run takes."""

    clock: Callable[[], float] = time.perf_counter
    seconds: dict[str, float] = field(default_factory=dict[str, float])

    def timed(self, name: str, work: Callable[[], T]) -> T:
        """What `work` gives; its time is noted under `name`."""
        start = self.clock()
        done = work()
        self.seconds[name] = round(self.clock() - start, 1)
        return done


def is_done(result: Path, effort: DataclassInstance, spec: str | Sequence[str]) -> bool:
    """Whether there are results of this effort, of the method as it is now specified."""
    if not result.is_file():
        return False
    found = json.loads(result.read_text())
    asked = json.loads(json.dumps({"effort": asdict(effort), "spec": spec}))
    return all(found.get(key) == value for key, value in asked.items())


def keep(result: Path, content: dict[str, Any]) -> Path:
    """Write the results with the machine's facts; returns their path."""
    result.parent.mkdir(parents=True, exist_ok=True)
    whole = {"machine": machine(), **content}
    result.write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n")
    return result


@contextmanager
def quiet(seed: int) -> Generator[None]:
    """Seeded, and without warnings: gates that collapse are seen in the results, and stop no run."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
