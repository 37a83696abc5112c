"""From the command line's words to a model and its dynamic form."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dyncompile import zoo
from dyncompile.checkpoint import load
from dyncompile.pipeline import Pass, dynamize
from dyncompile.runtime.model import DynamicModel
from dyncompile.zoo import Source


@dataclass(frozen=True)
class Loaded:
    """A source model and what was made of it."""

    source: Source
    dyn: DynamicModel

    @property
    def example(self) -> Any:
        """The source's inputs as `dynamize` and `verify` take them."""
        return example_of(self.source)


def find_modules_here() -> None:
    """The working directory may hold the module that a specification names."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def open_model(folder: Path, source: str | None) -> DynamicModel:
    """A saved dynamic model, from its stored graph or from a named source. Raises CheckpointError."""
    return load(folder, None if source is None else load_model(source).model)


def load_model(spec: str) -> Source:
    """A model by name; the same random weights every time. The working directory may hold its module."""
    find_modules_here()
    torch.default_generator.manual_seed(0)
    return zoo.load(spec)


def make_dynamic(source: Source, passes: Sequence[Pass]) -> Loaded:
    """Apply passes to a loaded model."""
    return Loaded(source, dynamize(source.model, list(passes), example_of(source)))


def example_of(source: Source) -> Any:
    """A tuple of positional or a dict of keyword inputs."""
    return source.kwargs or source.args
