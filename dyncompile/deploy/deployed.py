"""Inference: batch norms folded, no gradients, what decisions drop not run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, fx, nn

from dyncompile.deploy.buckets import Cost, by_macs, merged, movable
from dyncompile.deploy.kernels import bind_faster
from dyncompile.deploy.norms import fold_norms
from dyncompile.deploy.packing import pack_bases
from dyncompile.deploy.pieces import FORMS, Memory, Piece, Shop
from dyncompile.deploy.regions import Regions, check_usable
from dyncompile.errors import InputError, SpecError
from dyncompile.policies import Full, Learned, Policy, Smallest
from dyncompile.program import Choice, Domain, Program, Route
from dyncompile.runtime.compiled import GraphForward
from dyncompile.runtime.model import DynamicModel, Execution, Record, as_dynamic
from dyncompile.runtime.steering import check_names, decision_of, plan_route
from dyncompile.state import FOLDED, put_state, state_tensors
from dyncompile.variants import at, columns_of

BackendName = Literal["eager", "inductor"]


@dataclass(frozen=True)
class Settings:
    """How a deployed model runs; the arguments of `deploy`."""

    backend: BackendName = "eager"
    memory: Memory = "shared"
    max_buckets: int | None = None
    cost: Cost | None = None
    max_graphs: int = 64

    def __post_init__(self) -> None:
        for value, known, what in (
            (self.backend, get_args(BackendName), "backend"),
            (self.memory, get_args(Memory), "memory"),
        ):
            if value not in known:
                named = " and ".join(f'"{one}"' for one in known)
                raise SpecError(f"there is no {what} {value!r}", fix=f"there is {named}")
        if self.max_buckets is not None and self.max_buckets < 1:
            raise SpecError(f"max_buckets is at least 1, got {self.max_buckets}")
        if self.max_graphs < 1:
            raise SpecError(f"max_graphs is at least 1, got {self.max_graphs}")


class Deployed(DynamicModel):
    """A dynamic model for inference. It stays in evaluation mode and computes no gradients.

    Rows part at decisions by what was decided for them and meet again where nothing tells them apart; each
    group runs at its own sizes; a branch runs for the rows that take it. A batch whose rows all take one
    known way runs as one static graph, and rows of one group are never gathered: batch 1 knows no grouping.
    Results come in the order of the batch and are the same in every run. Calls from several threads are safe.
    """

    def __init__(self, program: Program, settings: Settings | None = None, shop: Shop | None = None) -> None:
        self.settings = settings or Settings()
        self.regions = Regions(self.settings.max_graphs)
        finish = bind_faster if self.settings.backend == "eager" else self.regions
        self._shop = shop or Shop(self.settings.memory, finish, program.captured)
        self._pieces: list[Piece] = []
        self._whole: dict[tuple[tuple[float, ...], ...], GraphForward] = {}
        super().__init__(program)
        self.requires_grad_(False).train(False)
        for model in (self,) if self.by_size is None else self.by_size.models:
            model._forward()  # made now, not at the first call: calls may come side by side
            for asks in (False, True):
                model._cut(asks=asks)

    # -- running ------------------------------------------------------------------------------

    def record(self, *args: Any, policy: Policy, execution: Execution = "sparse", **kwargs: Any) -> Record:
        """See `DynamicModel.record`; outputs and routes are inference tensors."""
        check_names(policy, self.choices)
        with torch.inference_mode():
            return super().record(*args, policy=self._merging(policy), execution=execution, **kwargs)

    def execute(self, flat: Any, rows: int, policy: Policy, execution: Execution) -> Record:
        """`record` for flat graph inputs; one known way for all rows is one static graph."""
        if self.by_size is not None or policy.reads_gates or execution != "sparse":
            return super().execute(flat, rows, policy, execution)
        planned = plan_route(policy, self.choices, rows)
        forward = self._static(planned)
        if forward is None:
            return super().execute(flat, rows, policy, execution)
        return Record(forward(None, *flat), planned, {})

    def warm_up(self, *args: Any, **kwargs: Any) -> None:
        """Make what the first calls would make, graphs included, by running an example.

        Args:
            *args, **kwargs: a call of the source with at least one row. It runs with one row and with two.

        Every one-hot choice is driven to each of its columns, all choices alike, with and without asking
        gates; others run at full capacity, at the least, and as gates decide. Ways that mix columns are made
        when they come.

        Raises:
            InputError: the call has no row, or does not fit what was captured.
        """
        flat = self.program.signature.flatten(args, kwargs)
        if not self.program.signature.rows(flat):
            raise InputError("there is no sample to warm up with", fix="give a batch of at least one")
        leaves = self.program.signature.leaves
        columns = range(max((choice.width for choice in self.choices.values()), default=1))
        policies: list[Policy] = [Full(), Smallest(), *map(_Column, columns), Learned()]
        for rows in (1, 2):
            batch = [
                x[:1].expand(rows, *x.shape[1:]).clone() if leaf.batched else x
                for leaf, x in zip(leaves, flat, strict=True)
            ]
            with torch.inference_mode():
                for policy in policies:
                    self.execute(batch, rows, policy, "sparse")

    @property
    def packed_bytes(self) -> int:
        """Memory, beyond the model's own, of packed weights so far: one copy per column and tensor."""
        return self._shop.packed_bytes

    @property
    def compiled_graphs(self) -> int:
        """Graphs that torch.compile was given since the weights last changed; at most `max_graphs`."""
        return self.regions.graphs

    def train(self, mode: bool = True) -> Deployed:
        """Does nothing: the training graph is gone."""
        return super().train(False)

    # -- what is made ahead -------------------------------------------------------------------

    def _static(self, planned: Route) -> GraphForward | None:
        """The graph of the one way that all rows take; None where they differ, or it is not worth a graph."""
        key: list[tuple[float, ...]] = []
        for name, choice in self.choices.items():
            row = _common(choice, planned[name])
            if row is None:
                return None
            key.append(row)
        return self._whole.get(tuple(key)) or self._make_static(tuple(key))

    def _make_static(self, key: tuple[tuple[float, ...], ...]) -> GraphForward | None:
        with self._shop.lock:
            if key not in self._whole:
                if len(self._whole) >= FORMS:
                    return None
                decisions = {
                    name: decision_of(torch.tensor([row]))
                    for name, row in zip(self.choices, key, strict=True)
                }
                tensors = state_tensors(self.program.state)
                self._whole[key] = self._shop.made(self._plain["eval"], "static", tensors, decisions)
            return self._whole[key]

    def _compiled(self, graph: fx.Graph, name: str, state: nn.Module) -> GraphForward:
        piece = Piece(graph, name, state, self.program.choices, self._shop)
        self._pieces.append(piece)
        return piece

    def _sizes(self, program: Program) -> list[DynamicModel]:
        return [Deployed(at(program, column), self.settings, self._shop) for column in columns_of(program)]

    def _merging(self, policy: Policy) -> Policy:
        settings = self.settings
        if settings.max_buckets is None and settings.cost is None:
            return policy
        return merged(policy, self._movable, settings.max_buckets, settings.cost or self._by_macs)

    @cached_property
    def _movable(self) -> frozenset[str]:
        return movable(self.program)

    @cached_property
    def _by_macs(self) -> Cost:
        return by_macs(self.macs, self.choices)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Deployed:
        super()._apply(fn, recurse)  # pyright: ignore[reportUnknownMemberType]
        self._forget()
        return self

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As of any dynamic model; what was made of the old weights is made anew."""
        found = super().load_state_dict(state_dict, strict, assign)
        self._forget()
        return found

    def _forget(self) -> None:
        """Drop everything made of the state: its tensors may be others now."""
        with self._shop.lock:
            self._shop.copies.clear()
            self.regions.forget()
            for model in (self, *(() if self.by_size is None else self.by_size.models)):
                assert isinstance(model, Deployed)
                model._whole.clear()
                for piece in model._pieces:
                    piece.forget()

    def _like(self, program: Program) -> DynamicModel:
        return Deployed(program, self.settings)


@dataclass(frozen=True)
class _Column:
    """Asks every decision net and decides for a column all the same; others get the full row."""

    reads_gates: ClassVar[bool] = True

    column: int

    def decide(self, choice: Choice, rows: int, logits: Tensor | None) -> Tensor:
        row = choice.full
        if choice.domain is Domain.ONE_HOT and self.column < choice.width:
            row = choice.row(self.column)
        return torch.tensor([row]).expand(rows, -1)


def _common(choice: Choice, rows: Tensor) -> tuple[float, ...] | None:
    """The row that all of `rows` [B, width] equal, if it is one that a static graph is made for."""
    if not len(rows) or (len(rows) > 1 and rows.stride(0) and not bool((rows == rows[:1]).all())):
        return None
    row: tuple[float, ...] = tuple(rows[0].tolist())  # pyright: ignore
    few = choice.domain in (Domain.ONE_HOT, Domain.EXIT) or row in (choice.full, choice.smallest)
    return row if few else None


def deploy(
    dyn: DynamicModel,
    *,
    backend: BackendName = "eager",
    memory: Memory = "shared",
    max_buckets: int | None = None,
    cost: Cost | None = None,
    max_graphs: int = 64,
) -> Deployed:
    """A copy of a dynamic model for inference.

    ``fast(x)`` decides by the model's policy (its gates), ``fast.run(x, policy=...)`` by any other, at any
    batch size. Outputs agree with those of `dyn` in evaluation mode up to rounding: batch norms are folded
    into the contractions before them, except where their statistics are private to a choice's column. So its
    state is not that of `dyn`, and neither loads the other's.

    Args:
        dyn: any dynamic model; it stays as it is, and later training of it does not reach the copy.
        backend: "eager", or "inductor": what lies between decisions is compiled by torch.compile, each region
            as a whole and with a symbolic batch. The first calls compile; `warm_up` does that ahead.
        memory: "shared" narrows one set of weights by views; "packed" keeps contiguous copies of what is
            narrowed, per column, made when a column first runs: `packed_bytes` says how much that is.
        max_buckets: groups of rows per decision and part of the batch that came together to it. Beyond it,
            groups are moved up, to a larger width, size or kept branch, where that costs least: outputs of
            moved rows change, and the route that comes back is the one that ran. None: every row as decided.
        cost: ``cost(choice, column, rows)`` of a group, for `max_buckets`; groups also merge without a limit
            where it says that one is cheaper than two. None: MACs.
        max_graphs: graphs that torch.compile may make; regions beyond it run uncompiled.

    Raises:
        SpecError: it is no dynamic model, or an argument is none of these.
        DyncompileError: torch.compile cannot be used here.
    """
    settings = Settings(backend, memory, max_buckets, cost, max_graphs)
    if backend == "inductor":
        check_usable()
    dyn = as_dynamic(dyn)
    program = fold_norms(dyn.program)
    pack_bases(program)
    _mark(program.state)
    fast = Deployed(program, settings)
    fast.policy, fast.costs = dyn.policy, dyn.costs
    return fast


def _mark(state: nn.Module) -> None:
    """Let what is saved of a folded state say so."""
    like = next(iter(state_tensors(state).values()), torch.empty(0))
    put_state(state, FOLDED, torch.ones((), dtype=torch.bool, device=like.device))
