"""`nn.Module` -> `Program`."""

from dyncompile.capture.export import capture

__all__ = ["capture"]
