"""The graphs of a deployed model as functions: each is evaluated in part once per way through it.

Rows that run together share the columns of all choices that size something. So a graph is folded for these
columns at its first use, and later calls find narrowed weights, literals and private statistics ready:

    memory="shared"   views of one set of weights; what is no leading slice is gathered at each call
    memory="packed"   a contiguous copy of every narrowed tensor that is none, made once for all graphs
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from threading import RLock
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from dyncompile.deploy.fold import Way, fold_some
from dyncompile.program import Choice, Decision
from dyncompile.runtime.compiled import GraphForward, compile_graph
from dyncompile.runtime.segments import parting
from dyncompile.runtime.steering import decision_of
from dyncompile.state import Dtypes, state_tensors

Memory = Literal["shared", "packed"]
Backend = Callable[[fx.Graph, str, Mapping[str, Tensor]], GraphForward]
"""``finish(graph, name, state)``: a folded graph and the tensors that it reads, as a function."""

FORMS = 64
"""Forms that are kept per graph; further ways through it run its general form."""


@dataclass
class Shop:
    """What the graphs of one deployed model share.

    Attributes:
        memory: see the module's docstring.
        finish: how folded graphs become functions.
        captured: see `Program.captured`.
        lock: held while something is made; calls of what is made need none.
        copies: packed tensors.
    """

    memory: Memory
    finish: Backend
    captured: Dtypes
    lock: RLock = field(default_factory=RLock)
    copies: dict[Way, Tensor] = field(default_factory=dict[Way, Tensor])

    @property
    def packed_bytes(self) -> int:
        """Memory of the packed copies so far."""
        with self.lock:
            return sum(copy.numel() * copy.element_size() for copy in self.copies.values())

    def made(
        self, graph: fx.Graph, name: str, tensors: Mapping[str, Tensor], decisions: Mapping[str, Decision]
    ) -> GraphForward:
        """A graph with some decisions settled, as a function of the policy and its other inputs."""
        # What is made is kept: it must not be inference tensors if the first call runs in such a mode.
        with torch.inference_mode(False), torch.no_grad():
            gathers = self.memory == "shared"
            found = fold_some(graph, decisions, tensors, self.captured, keeps_policy=True, gathers=gathers)
            state = dict(found.state)
            if self.memory == "packed":
                state = {one: self._packed(value, found.ways[one], tensors) for one, value in state.items()}
        return self.finish(found.graph, name, state)

    def _packed(self, value: Tensor, way: Way, tensors: Mapping[str, Tensor]) -> Tensor:
        if len(way) < 2:  # the whole tensor, or computed for this form alone
            return value
        source = tensors[way[0]]
        is_view = value.untyped_storage().data_ptr() == source.untyped_storage().data_ptr()
        if is_view and value.is_contiguous():
            return value
        key = (source.data_ptr(), *way)
        if key not in self.copies:
            self.copies[key] = value.contiguous()
        return self.copies[key]


class Piece:
    """One graph as a function ``(policy, *inputs) -> outputs``."""

    def __init__(
        self, graph: fx.Graph, name: str, state: nn.Module, choices: Mapping[str, Choice], shop: Shop
    ) -> None:
        self._graph, self._name, self._state, self._shop = graph, name, state, shop
        self._choices = [choices[one] for one in sorted(parting(graph))]
        self._names = [choice.name for choice in self._choices]
        self._forms: dict[tuple[int, ...], GraphForward] = {}

    def __call__(self, policy: Any, *inputs: Any) -> Any:
        """Run for rows that share the columns of the choices that size something."""
        key = tuple([policy.column(name) for name in self._names])
        forward = self._forms.get(key)
        if forward is None:
            forward = self._form(key)
        return forward(policy, *inputs)

    def forget(self) -> None:
        """Drop what was made of tensors that are no longer the model's."""
        self._forms.clear()

    def _form(self, key: tuple[int, ...]) -> GraphForward:
        with self._shop.lock:
            if key not in self._forms:
                if len(self._forms) >= FORMS:
                    return self._general
                self._forms[key] = self._made(key)
            return self._forms[key]

    def _made(self, key: tuple[int, ...]) -> GraphForward:
        decisions = {
            choice.name: decision_of(torch.tensor([choice.row(column)]))
            for choice, column in zip(self._choices, key, strict=True)
        }
        return self._shop.made(self._graph, self._name, state_tensors(self._state), decisions)

    @cached_property
    def _general(self) -> GraphForward:
        return compile_graph(self._graph, self._name, self._state)
