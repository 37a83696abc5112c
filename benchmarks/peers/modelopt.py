"""NVIDIA ModelOpt, AutoNAS: a supernet of widths and depths, with its default configuration."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from benchmarks.peers.subject import Converted

nas: Any = importlib.import_module("modelopt.torch.nas")


def convert(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Converted:
    """See `benchmarks.peers.subject.Contender`. AutoNAS is told of no inputs."""
    del args, kwargs
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    dynamic: Any = nas.convert(model, mode="autonas").eval()
    hparams = dict(nas.search_space.SearchSpace(dynamic).named_hparams())
    depths = {name: one for name, one in hparams.items() if name.rpartition(".")[2] == "depth"}
    wide = {
        name.rpartition(".")[0]
        for name, one in hparams.items()
        if name not in depths and len(one.choices) > 1
    }
    dropped = list(_dropped(dynamic, depths))
    if not wide and not dropped:
        raise ValueError("converted without an error, and nothing has a choice")

    def at(pick: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            nas.sample(dynamic, pick)
            return dynamic(*args, **kwargs)

        return run

    modules = dict(dynamic.named_modules())
    return Converted(
        full=at(max),
        smallest=at(min),
        elastic=frozenset(names[id(p)] for name in wide for p in _own(modules[name]) if id(p) in names),
        skippable=frozenset(names[id(p)] for block in dropped for p in _own(block, True) if id(p) in names),
        blocks=len(dropped),
    )


def _dropped(dynamic: nn.Module, depths: dict[str, Any]) -> Iterator[nn.Module]:
    """Blocks that a sequence leaves out at its smallest depth."""
    for name, depth in depths.items():
        sequence = dynamic.get_submodule(name.rpartition(".")[0])
        yield from list(sequence.children())[min(depth.choices) :]


def _own(module: nn.Module, recurse: bool = False) -> Iterator[nn.Parameter]:
    """The stored parameters: attributes of a dynamic module give slices of them."""
    for one in module.modules() if recurse else (module,):
        yield from (p for p in one._parameters.values() if p is not None)
