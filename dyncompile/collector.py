"""Work during which Python's cyclic garbage collector rests."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def paused_collector() -> Generator[None]:
    """No collection inside, where much is made at once and little of it is garbage.

    Every full collection walks all objects of the process, which takes a good part of a second where a few
    libraries are loaded; graphs and traces make enough objects to set off several. Blocks may nest.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
