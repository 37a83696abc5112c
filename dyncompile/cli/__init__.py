"""The command line: ``dyncompile explain | verify | convert | demo``."""

from dyncompile.cli.commands import app

__all__ = ["app"]
