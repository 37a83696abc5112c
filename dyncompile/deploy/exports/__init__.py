"""Programs that run elsewhere: one sample with its decisions, the static network of a route, or a bundle."""

from dyncompile.deploy.exports.exporting import export

__all__ = ["export"]
