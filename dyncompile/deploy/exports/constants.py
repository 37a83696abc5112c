"""The state of an exported program: that of the model, parts of it, and what is computed ahead of time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from dyncompile.deploy.exports import forms
from dyncompile.deploy.exports.frames import STATE, Frame
from dyncompile.program import Choice, Program
from dyncompile.state import STATE_PREFIX, put_state, state_tensors

CONSTANTS = f"{STATE_PREFIX}.exported"
"""Where tensors lie that an export adds."""


class Constants:
    """Tensors by name, and how frames read them.

    Attributes:
        choices: all decision points of the model.
        decisions_only: outputs are not wanted.
    """

    def __init__(self, program: Program, decisions_only: bool = False) -> None:
        self.decisions_only = decisions_only
        self.choices: Mapping[str, Choice] = program.choices
        self._tensors = state_tensors(program.state)
        self._names = {id(tensor): name for name, tensor in reversed(self._tensors.items())}
        self._parts: dict[int, tuple[Tensor, Tensor, Sequence[int | None]]] = {}
        self._known: dict[Any, str] = {}
        self._read: set[str] = set()

    def is_part(self, part: Tensor, whole: Tensor, sizes: Sequence[int | None]) -> None:
        """Note that a tensor is the leading `sizes` of another: it is read from there."""
        if part is not whole:
            self._parts[id(part)] = part, whole, sizes

    def read(self, frame: Frame, tensor: Tensor) -> fx.Node:
        """A tensor as a node of a frame."""
        if id(tensor) in self._parts:
            _, whole, sizes = self._parts[id(tensor)]
            return frame.call(forms.narrowed, self.read(frame, whole), sizes, [None] * len(sizes))
        name = self._names.get(id(tensor)) or self._kept(tensor)
        self._read.add(name)
        return frame.find((STATE, name))

    def full(self, frame: Frame, name: str) -> fx.Node:
        """What is reported of a choice that nothing asked for: full capacity."""
        return frame.call(forms.row, self.choices[name].full)

    def _kept(self, tensor: Tensor) -> str:
        """The name of a constant; equal ones are kept once."""
        own = tensor.detach().contiguous()
        key = own.shape, own.dtype, own.reshape(-1).view(torch.uint8).numpy().tobytes()
        if key not in self._known:
            self._known[key] = name = f"{CONSTANTS}.c{len(self._known)}"
            self._tensors[name] = own.clone()
        return self._known[key]

    def owner(self) -> nn.Module:
        """A module tree that holds what frames read; tied state stays tied."""
        owner, copies = nn.Module(), dict[int, Tensor]()
        for name in sorted(self._read):
            value = self._tensors[name]
            if id(value) not in copies:
                own = value.detach().clone(memory_format=torch.contiguous_format)
                copies[id(value)] = nn.Parameter(own, False) if isinstance(value, nn.Parameter) else own
            put_state(owner, name, copies[id(value)])
        return owner
