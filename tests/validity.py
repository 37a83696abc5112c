"""Checks of inferred types on one program, in the order in which a wrong rule is usually noticed.

Each check takes what it looks at from a `Trial` and raises when something is off. `first_failure` names the
first check that does: the tests of seeded bugs expect a name, all others expect None.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from dyncompile.analysis.dims.facts import dim_facts
from dyncompile.analysis.dims.infer import Inference, free_atoms, infer
from dyncompile.analysis.dims.validate import (
    narrowed_graph,
    random_widths,
    run_masked,
    run_narrowed,
    zero_equivalent,
)
from dyncompile.analysis.facts import Facts
from dyncompile.analysis.macs import evaluate, macs_facts
from dyncompile.program import Mode, Program
from dyncompile.state import state_tensors
from dyncompile.variants import copy_program
from dyncompile.verify import count_macs
from tests.support import Subject, leaves, relative, same

ORDERS: tuple[tuple[Mode, ...], ...] = (
    ("train",),
    ("eval", "train"),
    ("train", "train", "eval"),
    ("eval", "eval", "train", "train"),
)
MASKED_TOLERANCE = 1e-4
Grouping = set[tuple[int, tuple[tuple[str, int], ...]]]


@dataclass(frozen=True)
class Trial:
    """Types inferred now, with the rules that are in the table now, and a few independent random widths."""

    subject: Subject
    seeds: tuple[int, ...] = (0, 1, 2, 3)

    @property
    def program(self) -> Program:
        return self.subject.program

    @cached_property
    def facts(self) -> Facts:
        dims = dim_facts(self.program)
        macs = macs_facts(self.program.graphs["eval"], dims.graphs["eval"])
        return replace(self.subject.facts, dims=dims, macs=macs)

    @cached_property
    def widths(self) -> list[dict[str, int]]:
        return [random_widths(self.facts, seed) for seed in self.seeds]

    def rows(self, count: int) -> list[Any]:
        """The example's inputs, cut to so many rows."""
        signature = self.program.signature
        pairs = zip(signature.leaves, self.subject.flat, strict=True)
        return [value[:count] if leaf.batched else value for leaf, value in pairs]

    def sliced(self, widths: dict[str, int], rows: int) -> list[Tensor]:
        with torch.no_grad():
            return leaves(run_narrowed(self.program, self.facts, widths, self.rows(rows)))


def grouping(inference: Inference) -> Grouping:
    """Size and sorted carriers of every free atom."""
    return {(atom.size, tuple(sorted(carriers))) for atom, carriers in free_atoms(inference).items()}


# -- checks -----------------------------------------------------------------------------------------


def check_inference(trial: Trial) -> None:
    """The framework's own assertion: a rule's sizes are those of the trace."""
    assert trial.facts.dims.elastic is not None


def check_gaps(trial: Trial) -> None:
    """Every dim of every input is typed, and the evaluation graph adds nothing."""
    assert not trial.facts.dims.gaps
    assert not trial.facts.dims.disagreements


def check_orders(trial: Trial) -> None:
    """Inference is idempotent, and independent of the order of the graphs."""
    expected = grouping(infer(trial.program))
    for order in ORDERS:
        again = infer(trial.program, order)
        assert grouping(again) == expected, order
        assert not again.gaps, order


def check_full(trial: Trial) -> None:
    """Literals rewritten for full widths change nothing, bit for bit."""
    widths = {name: one.dim.size for name, one in trial.facts.dims.elastic.items()}
    rows = trial.program.signature.rows(trial.subject.flat)
    assert same(trial.subject.expected(), trial.sliced(widths, rows))


def check_narrowed(trial: Trial) -> None:
    """At independent random widths the network runs, and every tensor has the shape that its type says."""
    for widths in trial.widths:
        trial.sliced(widths, 2)


def check_masked(trial: Trial) -> None:
    """Where a dim is zero-equivalent, masking its positions is the same as removing them."""
    only = zero_equivalent(trial.facts)
    for seed in trial.seeds:
        widths = random_widths(trial.facts, seed + 10, only=only)
        with torch.no_grad():
            masked = run_masked(trial.program, trial.facts, widths, trial.rows(2))
        assert relative(leaves(masked), trial.sliced(widths, 2)) <= MASKED_TOLERANCE, widths


def check_cost(trial: Trial) -> None:
    """The polynomial gives the MACs that torch counts on the narrowed network."""
    for drawn in ({}, *trial.widths):
        widths = {
            name: max(n, 2) for name, n in drawn.items()
        }  # at 1, torch multiplies instead of contracting
        counted = count_macs(lambda widths=widths: trial.sliced(widths, 1))
        modeled = evaluate(trial.facts.macs.path, widths)
        assert modeled == counted or (trial.facts.macs.unmodeled and modeled < counted), widths


def check_training(trial: Trial) -> None:
    """A training step at random widths moves gradients and statistics at kept positions, and nowhere else."""
    widths = trial.widths[0]
    program = copy_program(trial.program, {})
    before = {name: t.detach().clone() for name, t in state_tensors(program.state).items()}
    graph = narrowed_graph(program, trial.facts, widths, "train")
    outputs = fx.Interpreter(program.state, graph=graph).run(None, *trial.rows(2))  # pyright: ignore[reportArgumentType]
    torch.stack([out.float().square().mean() for out in leaves(outputs)]).sum().backward()
    for name, tensor in state_tensors(program.state).items():
        change = tensor.grad if tensor.requires_grad else tensor - before[name]
        if change is not None and change.dim():
            assert change.isfinite().all(), name
            assert change.any() or name not in trial.facts.dims.statistics, f"{name} is not updated"
            assert not _removed(change, name, trial.facts, widths).any(), name


def _removed(value: Tensor, name: str, facts: Facts, widths: dict[str, int]) -> Tensor:
    """The entries of `value` outside of the kept positions of tensor `name`."""
    outside = torch.ones(value.shape, dtype=torch.bool)
    block = torch.meshgrid(*(facts.kept(name, axis, widths) for axis in range(value.dim())), indexing="ij")
    outside[block] = False
    return value[outside]


def check_freedom(trial: Trial) -> None:
    """What moves is what moves by the rules as they are: no dim was frozen or tied without need."""
    found = {(one.dim.size, one.carriers) for one in trial.facts.dims.elastic.values()}
    expected = {(one.dim.size, one.carriers) for one in trial.subject.facts.dims.elastic.values()}
    assert found == expected


CHECKS: dict[str, Callable[[Trial], None]] = {
    "inference": check_inference,
    "gaps": check_gaps,
    "orders": check_orders,
    "full": check_full,
    "narrowed": check_narrowed,
    "masked": check_masked,
    "cost": check_cost,
    "training": check_training,
    "freedom": check_freedom,
}


def first_failure(
    subject: Subject, seeds: tuple[int, ...] = (0, 1, 2, 3), without: Collection[str] = ()
) -> tuple[str, Exception] | None:
    """(name of the first check that raises, what it raised); None if all hold."""
    trial = Trial(subject, seeds)
    for name, check in CHECKS.items():
        if name in without:
            continue
        try:
            check(trial)
        except (
            Exception
        ) as error:  # wrong types fail in any way: torch refuses shapes, indices run out of range
            return name, error
    return None


def assert_valid(subject: Subject, without: Collection[str] = ()) -> None:
    """All checks hold; otherwise the error of the first that does not."""
    failed = first_failure(subject, without=without)
    if failed is not None:
        raise AssertionError(f"the {failed[0]} check fails") from failed[1]
