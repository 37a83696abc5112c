"""The contract of a dynamic model, checked on the user's own model and inputs."""

from dyncompile.verify.compare import count_macs, difference, scale
from dyncompile.verify.contract import CHECKS, verify
from dyncompile.verify.report import Check, Report

__all__ = ["CHECKS", "Check", "Report", "count_macs", "difference", "scale", "verify"]
