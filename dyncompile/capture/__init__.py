"""`nn.Module` -> `Program`."""

from dyncompile.capture.first import capture

__all__ = ["capture"]
