"""Random numbers as a function of the position in training.

Every optimizer step, every batch read and every shuffle starts from a seed of its own. So there is no
generator state to save: a resumed run draws what the interrupted one would have drawn, whatever ran in
between.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch


def derive(*parts: int | str) -> int:
    """An int in [0, 2^62) that depends on all parts."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2


def seed_all(seed: int) -> None:
    """Seed the global generators of torch (every device), Python and NumPy."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    cast(Any, torch).manual_seed(seed)


@contextmanager
def preserved(device: torch.device | None = None) -> Generator[None]:
    """The global generators are afterwards as they were before; so is that of `device`, a GPU."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [device] if device is not None and device.type == "cuda" else []
    try:
        with cast(Any, torch.random).fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def reading(seed: int) -> Generator[None]:
    """Reading one batch: augmentations draw from `seed`, and training's own draws are not disturbed."""
    with preserved():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        yield
