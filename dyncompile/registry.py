"""Methods by name: everything in `passes/`, and what other packages offer as entry points."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from dyncompile.errors import SpecError

ENTRY_POINTS = "dyncompile.passes"

AMBIGUOUS: Mapping[str, Mapping[str, str]] = {
    "drnet": {
        "routing": "Dynamic Routing Networks: router branches between nodes",
        "resolution": "Dynamic Resolution Network: a predictor picks the input size",
    }
}
"""Names that two papers share, and what each could mean."""


@cache
def methods() -> Mapping[str, type[Any]]:
    """Pass classes by method name. A module of `passes/` lists its own in ``PASSES``."""
    package = importlib.import_module("dyncompile.passes")
    found: dict[str, type[Any]] = {}
    for module in pkgutil.iter_modules(package.__path__):
        for cls in getattr(importlib.import_module(f"dyncompile.passes.{module.name}"), "PASSES", ()):
            found[cls.method] = cls
    for point in entry_points(group=ENTRY_POINTS):
        found[point.name] = point.load()
    return found


def find_method(name: str) -> type[Any]:
    """The pass class of a method. Raises SpecError with the nearest names."""
    found = methods()
    if name in found:
        return found[name]
    if name in AMBIGUOUS:
        raise SpecError.of_all(
            f"{name!r} is the short name of two methods",
            [
                f"{method}: {meaning}" + ("" if method in found else " (not in this release)")
                for method, meaning in AMBIGUOUS[name].items()
            ],
            fix="name the one that you mean",
        )
    close = difflib.get_close_matches(name, list(found), 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise SpecError(f"there is no method {name!r}{hint}", fix=f"methods are: {', '.join(sorted(found))}")
