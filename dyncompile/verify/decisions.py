"""Decision nets: what they choose is carried out, and gradients reach them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from dyncompile.policies import Forced, Learned
from dyncompile.program import SWITCHES, WEIGHTS
from dyncompile.runtime.model import DynamicModel
from dyncompile.runtime.record import Record
from dyncompile.state import GATES
from dyncompile.verify.compare import RELATIVE_TOLERANCE, mean_square
from dyncompile.verify.report import Check
from dyncompile.verify.rounding import check_alike
from dyncompile.verify.subject import Subject
from dyncompile.zoo.randomization import randomize_constants

_GRADIENTS = "gradients of decision nets"


def check_learned(subject: Subject, seed: int) -> Check:
    """What decision nets choose is carried out: the output is that of the route which they report."""
    if not subject.dyn.gated:
        return Check("learned decisions", True, detail="no decision net in this model")
    chosen: set[tuple[str, int]] = set()

    def ways(subject: Subject) -> tuple[list[Any], list[Any]]:
        learned, forced = _learned_and_forced(subject, seed)
        chosen.update((name, int(row.argmax())) for name in subject.dyn.gated for row in learned.route[name])
        return [forced.output], [learned.output]

    check = check_alike(
        "learned decisions", subject, ways, RELATIVE_TOLERANCE, f"{len(subject.dyn.gated)} nets"
    )
    return replace(check, detail=f"{check.detail}, {len(chosen)} columns chosen")


@torch.no_grad()
def _learned_and_forced(subject: Subject, seed: int) -> tuple[Record, Record]:
    """What a stirred copy decides, and what it does on the route that it reports."""
    dyn = _stirred(subject.dyn, seed).eval()
    args, kwargs = subject.rows(4)
    torch.manual_seed(seed)  # pyright: ignore
    learned = dyn.record(*args, policy=Learned(noise=True), execution="sparse", **kwargs)
    return learned, dyn.record(*args, policy=Forced(learned.route), **kwargs)


def check_gradients(subject: Subject, seed: int) -> Check:
    """The task loss alone and the cost alone each reach every parameter of every decision net.

    A decision that costs nothing either way (channel attention) is left to the task loss.
    """
    if not _learning(subject.dyn):
        return Check(_GRADIENTS, True, detail="no decision net in this model has parameters that learn")
    dyn = _open(_stirred(subject.dyn, seed)).train()
    gates = _learning(dyn)
    args, kwargs = subject.rows(3)
    record = dyn.record(*args, policy=Learned(), execution="dense", **kwargs)
    losses = _losses(dyn, record)
    unreached: list[str] = []
    for term, loss in losses.items():
        found = cast(
            "Sequence[Tensor | None]",
            torch.autograd.grad(loss, list(gates.values()), retain_graph=True, allow_unused=True),
        )
        free = tuple(f"{GATES}.{n}." for n in dyn.gated if n not in dyn.priced) if term == "cost" else ()
        unreached += [
            f"{term} does not reach {name}"
            for name, gradient in zip(gates, found, strict=True)
            if not name.startswith(free or "-") and (gradient is None or not bool(gradient.any()))
        ]
    return Check(
        _GRADIENTS,
        not unreached,
        detail=", ".join(unreached[:5]) or f"{len(gates)} parameters, by {' and '.join(losses)}",
    )


def _learning(dyn: DynamicModel) -> dict[str, nn.Parameter]:
    """The parameters of decision nets that training may change."""
    named = dyn.named_parameters()
    return {name: p for name, p in named if name.startswith(f"{GATES}.") and p.requires_grad}


def _losses(dyn: DynamicModel, record: Record) -> dict[str, Tensor]:
    """What reaches decision nets: no task where outputs are integers, no cost where no choice has one."""
    task = mean_square(record.output)
    losses = {} if task is None else {"task": task}
    if dyn.priced.intersection(dyn.gated).difference(dyn.exits):  # an exit has a threshold, and no parameters
        losses["cost"] = dyn.macs(record.route).mean() / dyn.static_macs
    return losses


def _open(dyn: DynamicModel) -> DynamicModel:
    """With all branches and channels on: a net inside a branch that is off gets no gradient, and need not."""
    opened = (*SWITCHES, *WEIGHTS)
    with torch.no_grad():
        for choice in (dyn.choices[name] for name in dyn.gated if dyn.choices[name].domain in opened):
            bias = dyn.get_parameter(f"{GATES}.{choice.name}.head.bias")
            dyn.get_parameter(f"{GATES}.{choice.name}.head.weight").mul_(0.01)
            bias.copy_(torch.tensor(choice.full) / 2)
    return dyn


def _stirred(dyn: DynamicModel, seed: int) -> DynamicModel:
    """A copy without constant parameters and dead units, where nothing blocks a gradient or a decision."""
    own = copy.deepcopy(dyn)
    randomize_constants(own, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            if name.startswith(f"{GATES}.") and name.endswith(".bias"):
                parameter.fill_(0 if name.endswith("head.bias") else 1)
    return own
