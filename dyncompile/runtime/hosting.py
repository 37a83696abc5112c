"""A module over the state of another: what it has of its own comes before submodules of the same name."""

from __future__ import annotations

from typing import Any

from torch import nn


class Hosting(nn.Module):
    """A module that takes over a tree of state whose names it does not choose.

    Attributes that were set before `host` stay attributes, whatever is called alike in the tree; a network of
    an actor may have a submodule `policy`.
    """

    def host(self, state: nn.Module) -> None:
        """Share the state's own dictionaries: whatever `.to()` or a load replaces in one, it does in both."""
        for attribute in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            object.__setattr__(self, attribute, getattr(state, attribute))

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__ or isinstance(getattr(type(self), name, None), property):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)
