"""From a plan to a new program."""

from dyncompile.rewrite.editor import Editor

__all__ = ["Editor"]
