"""Recipes: plain functions that return the phases of a training. ``dc.recipes.dsnet(...)``.

A module of this package lists its recipes in ``RECIPES``; a new method's recipe is one new file. `parts`
holds what recipes have in common.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING

from dyncompile.train.phase import Recipe

if TYPE_CHECKING:  # signatures for editors; what there is at run time is found below
    from dyncompile.train.recipes.basisnet import basisnet as basisnet
    from dyncompile.train.recipes.dsnet import dsnet as dsnet
    from dyncompile.train.recipes.exits import exits as exits
    from dyncompile.train.recipes.lcnet import lcnet as lcnet
    from dyncompile.train.recipes.resolution import resolution as resolution
    from dyncompile.train.recipes.routing import routing as routing
    from dyncompile.train.recipes.supernet import supernet as supernet


def _found() -> dict[str, Callable[..., Recipe]]:
    """Recipes by name."""
    recipes: dict[str, Callable[..., Recipe]] = {}
    for module in sorted(found.name for found in pkgutil.iter_modules(__path__)):
        for recipe in getattr(importlib.import_module(f"{__name__}.{module}"), "RECIPES", ()):
            recipes[recipe.__name__] = recipe
    return recipes


_RECIPES = _found()
# After all imports: importing a submodule binds its name here, and a recipe has the name of its module.
globals().update(_RECIPES)


def __getattr__(name: str) -> Callable[..., Recipe]:
    raise AttributeError(f"there is no recipe {name!r}; recipes are: {', '.join(sorted(_RECIPES))}")


def __dir__() -> list[str]:
    return sorted(_RECIPES)
