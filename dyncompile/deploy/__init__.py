"""From a dynamic model to static graphs and deployable programs."""

from dyncompile.deploy.specialize import specialize

__all__ = ["specialize"]
