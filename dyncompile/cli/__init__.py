"""The command line: ``dyncompile COMMAND``, see ``dyncompile --help``.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 a model breaks its contract,
2 something that the user gave cannot be used. Anything else is a bug and shows its traceback.
"""

from dyncompile.cli import commands, deployment, measuring, results, training
from dyncompile.cli.app import app

__all__ = ["app", "commands", "deployment", "measuring", "results", "training"]
