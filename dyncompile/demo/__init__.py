"""The demonstration: digits, a small ResNet, four widths in one set of weights. See ``dyncompile demo``."""

from dyncompile.demo.config import DemoConfig, Watch
from dyncompile.demo.results import DemoResult, WidthResult
from dyncompile.demo.run import run_demo

__all__ = ["DemoConfig", "DemoResult", "Watch", "WidthResult", "run_demo"]
