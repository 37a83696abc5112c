"""From a dynamic model to static graphs and deployable programs."""

from dyncompile.deploy.deployed import Deployed, deploy
from dyncompile.deploy.exports import export
from dyncompile.deploy.specialize import specialize

__all__ = ["Deployed", "deploy", "export", "specialize"]
