"""What a comparison of times asks of the allocator."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_memory() -> None:
    """Have glibc keep what is freed.

    It gives large tensors back at once, as a rule, and page faults then cost a bottleneck at batch 8 half of
    its time again, a ResNet-50 at batch 32 three quarters, now in one of the networks that are compared and
    now in the other.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1)):
            library.mallopt(option, value)
