"""Clocks: how much time went by between two marks, on a host or on a device that works behind its back."""

from __future__ import annotations

import time
from typing import Any, ClassVar, Protocol

import torch


class Clock(Protocol):
    """Takes marks while work is issued; tells the seconds between them once it is done."""

    name: ClassVar[str]
    """What it counts; times of different clocks are kept apart."""

    def mark(self) -> Any:
        """This moment in the stream of work."""
        ...

    def seconds(self, start: Any, end: Any) -> float:
        """Time between two marks; it may wait until the work before the later one is done."""
        ...


class WallClock:
    """Wall time of this process: right where a call returns when its work is done, as on a CPU."""

    name: ClassVar[str] = "wall"

    def mark(self) -> int:
        """Nanoseconds."""
        return time.perf_counter_ns()

    def seconds(self, start: int, end: int) -> float:
        """See `Clock`."""
        return (end - start) / 1e9


class ProcessClock:
    """CPU time of this process, all threads together.

    On a machine that others use too it shows what one thread computed; with several threads it is no latency.
    """

    name: ClassVar[str] = "cpu"

    def mark(self) -> int:
        """Nanoseconds."""
        return time.process_time_ns()

    def seconds(self, start: int, end: int) -> float:
        """See `Clock`."""
        return (end - start) / 1e9


class EventClock:
    """Time on a CUDA device, by events in its stream. Where kernels wait to be launched, that wait counts."""

    name: ClassVar[str] = "events"

    def mark(self) -> torch.cuda.Event:
        """An event after all that was issued so far."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """See `Clock`."""
        end.synchronize()
        return start.elapsed_time(end) / 1e3


class SynchronousClock:
    """Wall time on any other accelerator, which is waited for at every mark."""

    name: ClassVar[str] = "synchronous"

    def mark(self) -> int:
        """Nanoseconds."""
        torch.accelerator.synchronize()
        return time.perf_counter_ns()

    def seconds(self, start: int, end: int) -> float:
        """See `Clock`."""
        return (end - start) / 1e9


def clock_of(device: torch.device) -> Clock:
    """The clock that tells how long work on a device takes."""
    if device.type == "cpu":
        return WallClock()
    return EventClock() if device.type == "cuda" else SynchronousClock()
