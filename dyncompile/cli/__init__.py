"""The command line: ``dyncompile explain | verify | convert | demo``."""

from dyncompile.cli.app import app

__all__ = ["app"]
