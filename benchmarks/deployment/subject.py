"""A model of the zoo beside its dynamic and its deployed form, and how all are called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

import dyncompile as dc
from benchmarks.twins import twin
from dyncompile import zoo
from dyncompile.deploy import Deployed

METHOD = "dsnet"
Inputs = dict[str, Tensor]
"""Tensors by argument name; by position under ``"0"``, ``"1"``, ..."""


@dataclass(frozen=True)
class Subject:
    """One model, everything made at its first use."""

    name: str

    @cached_property
    def _source(self) -> zoo.Source:
        return zoo.load(self.name)

    @cached_property
    def model(self) -> nn.Module:
        """The source."""
        return self._source.model.eval().requires_grad_(False)

    @cached_property
    def dyn(self) -> dc.DynamicModel:
        """Of the source, at fresh weights."""
        return dc.dynamize(self.model, METHOD, self._source.kwargs or self._source.args).eval()

    @cached_property
    def shared(self) -> Deployed:
        """Deployed on views of the weights."""
        return dc.deploy(self.dyn)

    @cached_property
    def packed(self) -> Deployed:
        """Deployed on copies of what is narrowed."""
        return dc.deploy(self.dyn, memory="packed")

    @property
    def columns(self) -> range:
        """All widths."""
        return range(self.dyn.choices["width"].width)

    @cached_property
    def static(self) -> Sequence[nn.Module]:
        """The specialized graph of each width."""
        return [dc.specialize(self.dyn, self.dyn.route(column)) for column in self.columns]

    @cached_property
    def hand(self) -> Sequence[nn.Module]:
        """A network of each width built by hand."""
        return [twin(self.model, dict(one.state_dict())) for one in self.static]

    def gated(self, column: int) -> Deployed:
        """A deployed copy whose gates run and always say `column`."""
        fast = dc.deploy(self.dyn)
        for name in fast.gated:
            head = f"dyn.gates.{name}.head"
            fast.get_parameter(f"{head}.weight").zero_()
            fast.get_parameter(f"{head}.bias").copy_(torch.eye(fast.choices[name].width)[column])
        return fast

    def inputs(self, rows: int) -> Inputs:
        """The example's tensors with so many rows; numbers anew, ids repeated."""
        named = {str(i): x for i, x in enumerate(self._source.args)} | dict(self._source.kwargs)
        random = torch.Generator().manual_seed(0)
        return {
            name: torch.randn(rows, *x.shape[1:], generator=random)
            if x.is_floating_point()
            else x[torch.arange(rows) % len(x)]
            for name, x in named.items()
        }


def call(model: Any, inputs: Inputs, policy: dc.Policy | None = None) -> Any:
    """A model on inputs, by a policy if one is given."""
    args = [x for name, x in inputs.items() if name.isdigit()]
    named = {name: x for name, x in inputs.items() if not name.isdigit()}
    return model(*args, **named) if policy is None else model.run(*args, policy=policy, **named)


def mixed(count: int, rows: int) -> tuple[dc.Forced, list[Tensor]]:
    """Rows dealt to `count` widths in turn: the policy, and the positions of each width's rows."""
    columns = torch.arange(rows) % count
    positions = [(columns == i).nonzero()[:, 0] for i in range(count)]
    return dc.Forced({"width": torch.eye(count)[columns]}), positions


def some(inputs: Inputs, rows: Tensor) -> Inputs:
    """Some rows of inputs."""
    return {name: x[rows] for name, x in inputs.items()}
