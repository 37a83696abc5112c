"""Multiply-accumulates of networks whose number can be derived by hand, by several counters."""

from benchmarks.counting.run import run

__all__ = ["run"]
