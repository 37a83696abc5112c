"""Time: ratios of interleaved runs, and `Latency`, the measured counterpart of MACs."""

from dyncompile.latency.clocks import Clock, EventClock, ProcessClock, WallClock
from dyncompile.latency.model import Latency
from dyncompile.latency.ratios import Comparison, Ratio, compare

__all__ = [
    "Clock",
    "Comparison",
    "EventClock",
    "Latency",
    "ProcessClock",
    "Ratio",
    "WallClock",
    "compare",
]
