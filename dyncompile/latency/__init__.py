"""Time: ratios of interleaved runs, and `Latency`, the measured counterpart of MACs."""

from dyncompile.latency.clocks import Clock, EventClock, ProcessClock, WallClock
from dyncompile.latency.model import Latency
from dyncompile.latency.profiling import Finding, Profile, profile
from dyncompile.latency.ratios import Comparison, Ratio, Times, compare, time_in_turns

__all__ = [
    "Clock",
    "Comparison",
    "EventClock",
    "Finding",
    "Latency",
    "ProcessClock",
    "Profile",
    "Ratio",
    "Times",
    "WallClock",
    "compare",
    "profile",
    "time_in_turns",
]
