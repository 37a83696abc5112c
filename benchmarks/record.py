"""Results with the facts of the machine that they were measured on."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What a reader needs to place a number: processor kind, cores, threads used, versions."""
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def read(name: str, key: str) -> Any:
    """What ``results/NAME.json`` holds under `key` so far; an empty dict without results."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text())[key] if path.exists() else {}


def write(name: str, content: dict[str, Any]) -> Path:
    """Write ``results/NAME.json`` with the machine's facts; returns its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **content}, indent=1, sort_keys=True) + "\n")
    return path
