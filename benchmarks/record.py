"""Results with the facts of the machine that they were measured on."""

from __future__ import annotations

import json
import os
import platform
import re
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
BESIDE = ContextVar("BESIDE", default=False)
"""Results go to a folder of this processor, beside those that are there."""


def machine() -> dict[str, Any]:
    """What a reader needs to place a number: processor, cores, threads used, versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    """Its name where Linux tells, else its kind."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return named[1].strip() if named else platform.machine()


def plain(processor: str) -> str:
    """A processor's name without marks: Intel Xeon, not Intel(R) Xeon(R) Processor."""
    return re.sub(r"\(\w+\)| Processor$", "", processor)


def folder() -> Path:
    """Where results are: ``results``, or with `BESIDE` ``results/processors/NAME``."""
    if not BESIDE.get():
        return RESULTS
    return RESULTS / "processors" / re.sub(r"\W+", "-", plain(_processor())).lower()


def read(name: str, key: str) -> Any:
    """What the results' ``NAME.json`` holds under `key` so far; an empty dict without results."""
    path = folder() / f"{name}.json"
    return json.loads(path.read_text())[key] if path.exists() else {}


def write(name: str, content: dict[str, Any]) -> Path:
    """Write the results' ``NAME.json`` with the machine's facts; returns its path."""
    path = folder() / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **content}, indent=1, sort_keys=True) + "\n")
    return path
