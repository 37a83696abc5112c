"""Measured times on disk, so that a model is measured once per device.

A file per key, in JSON. What cannot be read, or does not hold what it should, is as if it were not there.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import platformdirs
import torch

from dyncompile.files import replace_file
from dyncompile.latency.timing import Measured

VARIABLE = "DYNCOMPILE_CACHE"
"""Environment variable that names another folder than the user's cache."""
_VERSION = 1
_CPUS = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Key:
    """What a measurement belongs to."""

    fingerprint: str
    inputs: tuple[str, ...]
    device: str
    threads: int
    torch: str
    clock: str
    version: int = _VERSION

    @property
    def name(self) -> str:
        """A file name."""
        return f"{hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:32]}.json"


def cache_folder() -> Path:
    """Where measurements lie: ``$DYNCOMPILE_CACHE``, or the platform's place for what can be made again."""
    named = os.environ.get(VARIABLE)
    return (Path(named) if named else platformdirs.user_cache_path("dyncompile")) / "latency"


def device_name(device: torch.device) -> str:
    """The device as its maker calls it; a processor with its vector extension and number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{device.type} of {platform.node()}"
    return f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"


def _processor() -> str:
    lines = _CPUS.read_text().splitlines() if _CPUS.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def read(folder: Path, key: Key, shapes: Sequence[Sequence[int]]) -> list[Measured] | None:
    """What was measured under a key; None where nothing usable lies there.

    Args:
        folder: of all measurements.
        key: of this one.
        shapes: by network, how many times each term has.
    """
    try:
        found: Any = json.loads((folder / key.name).read_text())
        if found["key"] != json.loads(json.dumps(asdict(key))):
            return None
        measured = [_network(one) for one in found["networks"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    fits = [[len(times) for times in one.terms] for one in measured] == [list(one) for one in shapes]
    return measured if fits else None


def _network(found: Any) -> Measured:
    """Raises ValueError, KeyError or TypeError for anything but finite times."""
    terms = tuple(tuple(_seconds(one) for one in times) for times in found["terms"])
    calls = {name: _seconds(one) for name, one in cast("dict[str, Any]", found["calls"]).items()}
    return Measured(terms, {name: calls[name] for name in ("source", "forced", "asked")})


def _seconds(value: Any) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r} is no time")
    return float(value)


def write(folder: Path, key: Key, measured: Sequence[Measured]) -> None:
    """Keep a measurement; where that fails there is a warning, and it is made again next time."""
    networks: list[Mapping[str, Any]] = [{"terms": one.terms, "calls": dict(one.calls)} for one in measured]
    content = json.dumps({"key": asdict(key), "networks": networks}, indent=1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / key.name, content.encode())
    except OSError as error:
        warnings.warn(f"measured times cannot be kept in {folder}: {error}", stacklevel=3)
