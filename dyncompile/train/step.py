"""Forward and backward passes of one optimizer step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dyncompile.cost import Cost
from dyncompile.errors import SpecError, TrainingError
from dyncompile.policies import Policy
from dyncompile.runtime.model import DynamicModel, Record
from dyncompile.train.accelerated import World, floats
from dyncompile.train.average import Average
from dyncompile.train.batches import rows_of
from dyncompile.train.columns import evaluating
from dyncompile.train.phase import Batch, Clock, Loss, Moment, Phase, Turn

Memories = dict[str, dict[str, float]]
"""What each term of a phase keeps between steps, by the term's key."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Numbers of one step, means over its samples on all processes.

    Attributes:
        terms: value of every term by its key.
        share: MACs over the source's, mean over the turns; decision nets count where they ran.
        rows: samples that this process saw.
    """

    terms: Mapping[str, float]
    share: float
    rows: int


class Turns:
    """The turns of a phase, run one after the other so that only one pass's activations are in memory.

    Gradients add up: over turns as a sum, over a step's batches as a mean weighted by their samples.
    """

    def __init__(
        self,
        dyn: DynamicModel,
        phase: Phase,
        loss: Loss,
        world: World,
        average: Average | None,
        cost: Cost | None = None,
    ) -> None:
        self.memories: Memories = {}
        self.learning = False  # whether a turn has asked decision nets
        self._dyn = dyn
        self._phase = phase
        self._loss = loss
        self._world = world
        self._teacher = dyn if average is None else average.model
        self._keys = term_keys(phase.turns)
        self._static = dyn.static_macs
        self._cost = cost

    def run(self, batches: Sequence[Batch], clock: Clock) -> Outcome:
        """All passes of one step; gradients are then on the parameters.

        Raises:
            TrainingError: a term is not finite on some process. All processes raise.
        """
        self._dyn.train(not self._phase.frozen_norms)
        counts = [rows_of(batch) for batch in batches]
        totals = torch.zeros(len(self._names) + 2, device=self._world.device)
        for batch, rows in zip(batches, counts, strict=True):
            found = self._passes(batch, clock, rows / sum(counts))
            totals += rows * torch.stack([*found, torch.ones_like(found[0])])
        totals = self._world.sum(totals)
        *means, share, _ = floats(totals / totals[-1])
        terms = dict(zip(self._names, means, strict=True))
        bad = [f"{name} is {value}" for name, value in terms.items() if not _finite(value)]
        if bad:
            raise TrainingError.of_all("terms of the loss are not finite", bad)
        return Outcome(terms, share, sum(counts))

    @property
    def _names(self) -> list[str]:
        return [key for keys in self._keys for key in keys.values()]

    def _passes(self, batch: Batch, clock: Clock, weight: float) -> list[Tensor]:
        """Every turn on one batch: detached terms, then the mean share of MACs.

        Without a moving average, what a turn has just given on the samples as loaded teaches those after it.
        """
        known: list[tuple[Policy, Record]] = []
        teacher = _cached(self._teach(batch), known)
        terms: list[Tensor] = []
        shares: list[Tensor] = []
        for i, turn in enumerate(self._phase.turns):
            policy = turn.policy(clock)
            found, share, record = self._turn(i, policy, batch, clock, teacher, weight)
            if turn.view is None and self._teacher is self._dyn:
                known.append((policy, _detached(record)))
            terms += found
            shares.append(share)
        return [*terms, torch.stack(shares).mean()]

    def _turn(
        self,
        i: int,
        policy: Policy,
        batch: Batch,
        clock: Clock,
        teacher: Callable[[Policy], Record],
        weight: float,
    ) -> tuple[list[Tensor], Tensor, Record]:
        turn = self._phase.turns[i]
        view = batch if turn.view is None else turn.view(batch)
        self.learning |= policy.reads_gates
        with self._world.autocast():
            record = self._dyn.record(*view.args, policy=policy, execution=turn.execution, **view.kwargs)
            found: list[Tensor] = []
            for name, term in turn.terms.items():
                key = self._keys[i][name]
                memory = self.memories.setdefault(key, {})
                moment = Moment(self._dyn, view, record, self._loss, clock, teacher, memory, self._cost)
                found.append(_scalar(term(moment), key, self._phase))
            total = torch.stack(found).sum()
        if not total.requires_grad:
            raise SpecError(
                f"turn {i} of phase {self._phase.name!r} ({', '.join(turn.terms)}) reaches nothing trainable",
                fix=f"the phase trains {self._phase.trains}: let the turn use it, or drop the turn",
            )
        self._world.backward(total if weight == 1 else total * weight)
        return [value.detach().float() for value in found], self._share(policy, record), record

    @torch.no_grad()
    def _share(self, policy: Policy, record: Record) -> Tensor:
        macs = self._dyn.spent if policy.reads_gates else self._dyn.macs
        return (macs(record.route).mean() / self._static).float().to(self._world.device)

    def _teach(self, batch: Batch) -> Callable[[Policy], Record]:
        """Runs the teacher on a batch: in evaluation mode, without gradients."""

        def teach(policy: Policy) -> Record:
            with evaluating(self._teacher), self._world.autocast():
                return self._teacher.record(*batch.args, policy=policy, **batch.kwargs)

        return teach


def term_keys(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """Per turn, term name -> the key it is logged under: ``name[turn]`` where several turns have the name."""
    often = Counter(name for turn in turns for name in turn.terms)
    return [
        {name: name if often[name] == 1 else f"{name}[{i}]" for name in turn.terms}
        for i, turn in enumerate(turns)
    ]


def _detached(record: Record) -> Record:
    """What a turn gave, as a teacher: in-place distillation needs no run of its own."""
    flat, structure = pytree.tree_flatten(record.output)
    output = pytree.tree_unflatten([v.detach() if isinstance(v, Tensor) else v for v in flat], structure)
    return Record(output, {name: rows.detach() for name, rows in record.route.items()}, {})


def _cached(
    teach: Callable[[Policy], Record], known: list[tuple[Policy, Record]]
) -> Callable[[Policy], Record]:
    """One run per policy. Policies that cannot be hashed (they hold tensors) are told apart by identity."""

    def cached(policy: Policy) -> Record:
        for other, record in known:
            if other is policy or (_hashable(policy) and other == policy):
                return record
        known.append((policy, teach(policy)))
        return known[-1][1]

    return cached


def _hashable(policy: Policy) -> bool:
    try:
        hash(policy)
    except TypeError:
        return False
    return True


def _scalar(value: Tensor, key: str, phase: Phase) -> Tensor:
    if value.numel() != 1:
        raise SpecError(
            f"term {key!r} of phase {phase.name!r} is a tensor {list(value.shape)}, not a scalar",
            fix="return the mean over the batch",
        )
    return value.reshape(()).float()


def _finite(value: float) -> bool:
    return value - value == 0
