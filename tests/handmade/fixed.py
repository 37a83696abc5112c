"""Fixed random numbers for the networks of this package."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import nn

from tests.nets import randomize

P = ParamSpec("P")
T = TypeVar("T")


def fixed(make: Callable[P, tuple[nn.Module, T]]) -> Callable[P, tuple[nn.Module, T]]:
    """Give `make` the same random numbers at every call, and its module no constant vectors."""

    @functools.wraps(make)
    def seeded(*args: P.args, **kwargs: P.kwargs) -> tuple[nn.Module, T]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module, example = make(*args, **kwargs)
            return randomize(module), example

    return seeded
