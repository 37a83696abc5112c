"""Imports of libraries that are extras, never hard dependencies."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from types import ModuleType
from typing import Any

import torch

from dyncompile.errors import SpecError

_EXTRA = {"timm": "timm", "torchvision": "timm", "transformers": "hf", "lightning": "lightning"}
_USES_TORCHVISION = frozenset({"timm", "transformers", "lightning"})
_MISMATCH = "operator torchvision::nms does not exist"


def third_party(name: str) -> ModuleType:
    """Imports an extra; a torchvision that was built for another torch is made to import first.

    Raises:
        SpecError: the library is not installed.
    """
    if importlib.util.find_spec(name) is None:
        fix = f"pip install 'dyncompile[{_EXTRA[name]}]'"
        raise SpecError(f"{name} is not installed, and the specification needs it", fix=fix)
    if name in _USES_TORCHVISION and importlib.util.find_spec("torchvision") is not None:
        _torchvision()
    return _torchvision() if name == "torchvision" else importlib.import_module(name)


def _torchvision() -> ModuleType:
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if _MISMATCH not in str(error):
            raise
    for module in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
        del sys.modules[module]
    _declare_missing_operators()
    return importlib.import_module("torchvision")


@cache
def _declare_missing_operators() -> torch.library.Library:
    """A CUDA build of torchvision cannot load its C++ operators beside a CPU-only torch, but registers fake
    kernels for them at import. Two schemas without kernels satisfy that; detection's operators stay
    missing. The cache keeps the library object alive: torch removes the schemas with it.
    """
    library: Any = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
