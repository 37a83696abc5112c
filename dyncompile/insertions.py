"""What the Editor inserts besides single operators: exits, and bases under weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from dyncompile.analysis.facts import Facts
from dyncompile.exits import insert_leave
from dyncompile.gate import Gate
from dyncompile.inline import reading, tensor_inputs, values
from dyncompile.mixing import mix_weight
from dyncompile.plan import Synthesized
from dyncompile.program import MODES, Choice, Mode, Picked, Program, Sized
from dyncompile.state import BASES, EXITS


class Insertions(ABC):
    """The part of the Editor that builds on the rest of it."""

    _program: Program
    _facts: Facts
    _graphs: dict[Mode, fx.Graph]
    _tensors: dict[str, Tensor]
    _decisions: dict[tuple[Mode, str], fx.Node]
    _sized: dict[str, Sized]
    _picked: dict[str, Picked]
    _stale: bool

    @abstractmethod
    def add_choice(
        self,
        choice: Choice,
        gate: Gate | None = None,
        *,
        read: Mapping[Mode, Sequence[fx.Node]] | None = None,
    ) -> None:
        """Insert a decision."""

    @abstractmethod
    def add_state(self, name: str, value: Tensor) -> str:
        """Register a parameter or buffer under ``dyn.``."""

    @abstractmethod
    def insert(
        self, module: nn.Module, prefix: str, inputs: Mapping[Mode, Sequence[fx.Node]]
    ) -> dict[Mode, tuple[fx.Node, ...]]:
        """Insert a network."""

    @abstractmethod
    def resize(self, sized: Mapping[str, Sized], picked: Mapping[str, Picked] | None = None) -> None:
        """Let choices decide sizes."""

    @abstractmethod
    def _undo_resizing(self) -> None: ...

    @abstractmethod
    def _like_source(self, value: Tensor) -> Tensor: ...

    @property
    def program(self) -> Program:
        """What is edited, as it was."""
        return self._program

    @property
    def facts(self) -> Facts:
        """Facts of it."""
        return self._facts

    def inputs(self) -> dict[Mode, list[fx.Node]]:
        """The source's tensor inputs in each graph, in order."""
        return {mode: tensor_inputs(graph) for mode, graph in self._graphs.items()}

    def at(self, names: Mapping[Mode, str]) -> dict[Mode, fx.Node]:
        """The nodes of these names, one in each graph."""
        return {
            mode: next(node for node in graph.nodes if node.name == names[mode])
            for mode, graph in self._graphs.items()
        }

    def exit(self, choice: Choice, early: Mapping[Mode, fx.Node], sure: nn.Module) -> dict[Mode, fx.Node]:
        """Let rows have an early prediction for their output; `sure` scores it. Where that is decided."""
        scores = self.insert(sure, f"{EXITS}.{choice.name}", reading(early))
        self.add_choice(choice, read=reading(*values(scores), early))
        for mode, graph in self._graphs.items():
            insert_leave(graph, self._decisions[mode, choice.name], early[mode])
        self._stale = True
        return {mode: self._decisions[mode, choice.name] for mode in MODES}

    def synthesize(self, synthesized: Mapping[str, Synthesized]) -> None:
        """Let choices put weights together from bases, which are 0 at first."""
        if self._sized or self._picked:
            self._undo_resizing()
        for name, one in synthesized.items():
            zeros = torch.zeros(one.bases, *self._tensors[name].shape)
            bases = self.add_state(f"{BASES}.{name}", self._like_source(zeros))
            for mode, graph in self._graphs.items():
                mix_weight(graph, name, bases, self._decisions[mode, one.choice], one, self._tensors)
        self._stale = True
        if self._sized or self._picked:
            self.resize({})
