"""The most memory that a call holds at once, counted tensor by tensor."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


def weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def peak(call: Callable[[], object]) -> int:
    """Most bytes of new tensors alive at once during a call that has run before."""
    with torch.inference_mode():
        call()
        with _Alive() as alive:
            call()
    return alive.peak


class _Alive(TorchDispatchMode):
    """Counts the storages that operators make while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for value in _tensors(out):
            storage = value.untyped_storage()
            at, size = storage.data_ptr(), storage.nbytes()
            if at not in given and at not in self._seen:
                self._seen.add(at)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, at, size)
        return out

    def _freed(self, at: int, size: int) -> None:
        self._seen.discard(at)
        self.now -= size


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
