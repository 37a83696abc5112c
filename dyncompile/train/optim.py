"""Which parameters move, at which rates: groups, optimizers, schedules."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from dyncompile.errors import CheckpointError, SpecError
from dyncompile.runtime.model import DynamicModel
from dyncompile.state import GATES, STATE_PREFIX
from dyncompile.train.accelerated import World
from dyncompile.train.phase import Optimization, Phase, Schedule

Named = dict[str, nn.Parameter]


def rate_factor(schedule: Schedule, step: int, steps: int) -> float:
    """Share of the peak rate at optimizer step `step` of a phase of `steps`.

    Warm-up rises linearly from 0 (exclusive) and reaches 1 with its last step; cosine falls from 1 to
    `floor`, which it would reach at step `steps`.
    """
    warm = round(schedule.warmup * steps)
    if step < warm:
        return (step + 1) / warm
    if schedule.kind == "cosine":
        done = (step - warm) / max(steps - warm, 1)
        return schedule.floor + (1 - schedule.floor) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    if schedule.kind == "step":
        return schedule.factor ** sum(step >= drop * steps for drop in schedule.drops)
    return 1.0


def is_gate(name: str) -> bool:
    """Whether a parameter belongs to a decision net."""
    return name.startswith(f"{GATES}.")


def trainable(dyn: DynamicModel, phase: Phase) -> Named:
    """The parameters that a phase moves, by name; tied ones once, frozen ones stay.

    Raises SpecError where there are none.
    """
    meant = {name: p for name, p in dyn.named_parameters() if _moves(name, phase)}
    named = {name: p for name, p in meant.items() if p.requires_grad}
    if not named:
        what = "none of these parameters requires gradients" if meant else "the model has no such parameters"
        fix = "dyn.requires_grad_(True), or for those that shall move" if meant else None
        raise SpecError(
            f"phase {phase.name!r} trains {phase.trains}, and {what}",
            where=f"history {list(dyn.history)}",
            fix="dynamize with decision nets" if phase.trains == "gates" and not meant else fix,
        )
    return named


def _moves(name: str, phase: Phase) -> bool:
    if phase.trains == "inserted":
        return name.startswith(f"{STATE_PREFIX}.") and not is_gate(name)
    return phase.trains == "all" or is_gate(name) == (phase.trains == "gates")


@contextmanager
def moving(dyn: DynamicModel, names: Mapping[str, Any]) -> Generator[None]:
    """Only the named parameters require gradients inside; afterwards all are as before, without gradients."""
    before = {p: p.requires_grad for p in dyn.parameters()}
    try:
        for name, parameter in dyn.named_parameters():
            parameter.requires_grad_(name in names)
        yield
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)
            parameter.grad = None


class Optimizers:
    """The optimizers of a phase: one per kind, with groups of base weights, base vectors and decision nets.

    Vectors (norms, biases) and decision nets take no weight decay; decision nets have their own rate.
    """

    def __init__(self, dyn: DynamicModel, phase: Phase) -> None:
        self._named = trainable(dyn, phase)
        self._schedule = phase.schedule
        self._clip = phase.clip
        kinds = dict.fromkeys((phase.base.kind, phase.gates.kind))
        groups = parameter_groups(self._named, phase)
        self._optimizers = [_optimizer(kind, own) for kind in kinds if (own := _of_kind(groups, kind))]
        self._owners = {p: optimizer for optimizer in self._optimizers for p in _parameters(optimizer)}

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What moves."""
        return list(self._named.values())

    def set_rates(self, step: int, steps: int) -> dict[str, float]:
        """Set the rates of one step; returns them by owner ("base", "gates")."""
        factor = rate_factor(self._schedule, step, steps)
        rates: dict[str, float] = {}
        for group in self._groups():
            group["lr"] = group["peak"] * factor
            rates[group["owner"]] = group["lr"]
        return rates

    def update(self, world: World) -> None:
        """One step of every optimizer; gradients are gone afterwards."""
        moved = {self._owners[p]: None for p in self.parameters if p.grad is not None}
        world.update(list(moved), self.parameters, self._clip)
        for parameter in self.parameters:
            parameter.grad = None

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    def state(self) -> dict[str, Tensor]:
        """Tensors by ``entry/parameter name``, e.g. ``exp_avg/stem.weight``."""
        found: dict[str, Tensor] = {}
        for name, parameter in self._named.items():
            for entry, value in self._entries(parameter).items():
                if isinstance(value, Tensor):
                    found[f"{entry}/{name}"] = value
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from saved tensors. Raises CheckpointError for names that the model does not have."""
        unknown = sorted({key for key in tensors if key.partition("/")[2] not in self._named})
        if unknown:
            raise CheckpointError.of_all("optimizer state of parameters that do not train", unknown)
        for key, value in tensors.items():
            entry, _, name = key.partition("/")
            parameter = self._named[name]
            # Counters of steps stay on the CPU, where torch keeps them.
            place = parameter.device if value.shape == parameter.shape else torch.device("cpu")
            self._entries(parameter)[entry] = value.to(place)

    def _entries(self, parameter: nn.Parameter) -> dict[str, Any]:
        return cast(Any, self._owners[parameter].state)[parameter]


def parameter_groups(named: Named, phase: Phase) -> list[dict[str, Any]]:
    """Groups as torch's optimizers take them; `kind`, `owner` and `peak` are this package's own entries."""
    base = {name: p for name, p in named.items() if not is_gate(name)}
    gates = [p for name, p in named.items() if is_gate(name)]
    groups = [
        _group("base", [p for p in base.values() if p.dim() > 1], phase.base, phase.base.decay),
        _group("base", [p for p in base.values() if p.dim() <= 1], phase.base, 0.0),
        _group("gates", gates, phase.gates, 0.0),
    ]
    return [group for group in groups if group["params"]]


def _group(owner: str, params: Sequence[nn.Parameter], how: Optimization, decay: float) -> dict[str, Any]:
    group: dict[str, Any] = {"params": list(params), "lr": how.rate, "weight_decay": decay}
    if how.kind == "sgd":
        group.update(momentum=how.momentum, nesterov=how.momentum > 0)
    return {**group, "kind": how.kind, "owner": owner, "peak": how.rate}


def _of_kind(groups: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [group for group in groups if group["kind"] == kind]


def _optimizer(kind: str, groups: list[dict[str, Any]]) -> Optimizer:
    return SGD(groups, lr=0.0) if kind == "sgd" else AdamW(groups, lr=0.0)


def _parameters(optimizer: Optimizer) -> list[Any]:
    return [p for group in optimizer.param_groups for p in group["params"]]
