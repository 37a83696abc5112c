"""The order in which training data is read: a function of seed and position, on every process.

A dataset is shuffled and cut here, so that a resumed run starts reading at its exact position. Loaders and
other iterables of batches keep their own order, which is seeded; a resumed run reads and drops what is done.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from dyncompile.errors import InputError
from dyncompile.program import Program
from dyncompile.train.accelerated import World
from dyncompile.train.batches import as_batch, collate, to_device
from dyncompile.train.phase import Batch
from dyncompile.train.randomness import derive, reading


class Stream(Protocol):
    """Data as steps: each is what this process computes between two updates of the weights."""

    @property
    def steps(self) -> int:
        """Steps in one pass over the data, the same on every process."""
        ...

    def read(self, seed: int, start: int) -> Iterator[Sequence[Any]]:
        """Raw batches of every step from number `start` on, in the order of `seed`."""
        ...


@dataclass(frozen=True)
class Layout:
    """How samples are dealt out.

    Attributes:
        batch: samples per forward pass and process, at most.
        accumulate: forward passes per step.
        rank, count: this process among all.
        training: a new order in every epoch, and equal shares for all processes.
        workers: processes that read a dataset ahead; 0 reads in this one.
    """

    batch: int
    accumulate: int
    rank: int
    count: int
    training: bool
    workers: int = 0


@dataclass(frozen=True)
class Samples:
    """A dataset of single samples.

    All steps of an epoch are of one size, give or take one sample, and so are the batches of a step: no
    sample is left out, and no batch is so small that a norm cannot use it.
    """

    dataset: Any
    layout: Layout

    @property
    def steps(self) -> int:
        """Steps in one pass."""
        full = self.layout.batch * self.layout.accumulate * self.layout.count
        return max(1, min(-(-len(self.dataset) // full), len(self.dataset) // self.layout.count))

    def read(self, seed: int, start: int) -> Iterator[Sequence[Any]]:
        """See `Stream`. Reading ahead in worker processes gives the same batches."""
        steps = [_Step(self._parts(one), derive(seed, i, self.layout.rank)) for i, one in self._order(seed)]
        loader: Any = DataLoader(
            _Reader(self.dataset, steps),
            sampler=range(start, len(steps)),
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=self.layout.workers,
            pin_memory=torch.cuda.is_available(),
        )
        return iter(loader)

    def _order(self, seed: int) -> Iterator[tuple[int, list[int]]]:
        n = len(self.dataset)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(n, generator=generator) if self.layout.training else torch.arange(n)
        return enumerate(_evenly(_ints(order), self.steps))

    def _parts(self, indices: list[int]) -> list[list[int]]:
        """This process's batches of a step."""
        parts = _evenly(indices, self.layout.accumulate * self.layout.count)
        return [part for part in parts[self.layout.rank :: self.layout.count] if part]


@dataclass(frozen=True)
class _Step:
    batches: list[list[int]]
    seed: int


class _Reader(Dataset[Any]):
    """Item i is everything that step i reads; augmentations draw from the step's own seed."""

    def __init__(self, dataset: Any, steps: Sequence[_Step]) -> None:
        self._dataset = dataset
        self._steps = steps

    def __getitem__(self, index: int) -> list[Any]:
        step = self._steps[index]
        with reading(step.seed):
            return [collate([self._dataset[i] for i in batch]) for batch in step.batches]


@dataclass(frozen=True)
class Batches:
    """A `DataLoader`, or another sized iterable of batches, already this process's share of it."""

    source: Any
    layout: Layout
    strided: bool

    @property
    def steps(self) -> int:
        """Steps in one pass."""
        return -(-self._own // self.layout.accumulate)

    @property
    def _own(self) -> int:
        """Batches of this process. Training drops what is left over after an equal deal."""
        return len(range(self._first, self._end, self._stride))

    @property
    def _stride(self) -> int:
        return self.layout.count if self.strided else 1

    @property
    def _first(self) -> int:
        return self.layout.rank if self.strided else 0

    @property
    def _end(self) -> int:
        entries = len(self.source)
        return entries - entries % self._stride if self.layout.training else entries

    def read(self, seed: int, start: int) -> Iterator[Sequence[Any]]:
        """See `Stream`. Batches before `start` are read and dropped."""
        batches = self._read_own(seed)
        size = self.layout.accumulate
        for step in range(self.steps):
            wanted = min(size, self._own - step * size)
            found = [batch for _, batch in zip(range(wanted), batches, strict=False)]
            if len(found) < wanted:
                raise InputError(f"the data promises {len(self.source)} batches and ends before that")
            if step >= start:
                yield found

    def _read_own(self, seed: int) -> Iterator[Any]:
        """Batches of this process. What the loader's order is drawn from is the same on all of them."""
        _seed_loader(self.source, seed)
        with reading(seed):
            iterator = iter(self.source)
        for number in range(self._end):
            with reading(derive(seed, number, self.layout.rank if number else 0)):
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
            if number % self._stride == self._first:
                yield batch


@dataclass(frozen=True)
class Feed:
    """Batches of a stream, in their final form and on the device."""

    stream: Stream
    program: Program
    device: torch.device

    def steps(self, seed: int, start: int = 0) -> Iterator[tuple[Batch, ...]]:
        """What each step from number `start` on computes with."""
        for raw in self.stream.read(seed, start):
            yield tuple(to_device(as_batch(one, self.program), self.device) for one in raw)

    def epoch(self, seed: int) -> Iterable[Batch]:
        """All batches of one pass; can be read several times, always the same."""
        return _Epoch(self, seed)


@dataclass(frozen=True)
class _Epoch:
    feed: Feed
    seed: int

    def __iter__(self) -> Iterator[Batch]:
        for batches in self.feed.steps(self.seed):
            yield from batches


def open_stream(data: Any, layout: Layout, world: World) -> Stream:
    """The stream of whatever the user gave: a dataset, a `DataLoader`, or a sized iterable of batches.

    Raises:
        InputError: data without a length, without an entry, or with fewer entries than processes.
    """
    if not isinstance(data, Sized) or isinstance(data, IterableDataset):
        raise InputError(
            f"training data of type {type(data).__name__} has no length, so schedules cannot be planned",
            fix="give a dataset with __len__, a DataLoader over one, or a list of batches",
        )
    if layout.batch < 1 or layout.accumulate < 1:
        raise InputError(f"batch_size and accumulate are at least 1, got {layout.batch}, {layout.accumulate}")
    if len(data) < 1:
        raise InputError(f"the data is empty: {type(data).__name__} of length 0")
    if _holds_samples(data):
        return _filled(Samples(data, layout), len(data), "samples")
    if world.count > 1 and isinstance(data, DataLoader):
        return Batches(world.shard(data, even=layout.training), layout, strided=False)
    return _filled(Batches(data, layout, strided=True), len(data), "batches")


def _filled(stream: Samples | Batches, entries: int, what: str) -> Stream:
    """`stream`, if every process gets something to train on; evaluation may leave processes idle."""
    if stream.layout.training and entries < stream.layout.count:
        raise InputError(f"{entries} {what} cannot be dealt out to {stream.layout.count} processes")
    return stream


def _holds_samples(data: Any) -> bool:
    """Whether entries are single samples; Hugging Face's datasets are no torch datasets."""
    return isinstance(data, Dataset) or (hasattr(data, "column_names") and hasattr(data, "features"))


def _evenly(entries: list[int], parts: int) -> list[list[int]]:
    """Consecutive parts whose sizes differ by one at most, the larger ones first."""
    size, more = divmod(len(entries), parts)
    ends = [i * size + min(i, more) for i in range(parts + 1)]
    return [entries[a:b] for a, b in pairwise(ends)]


def _seed_loader(loader: Any, seed: int) -> None:
    """Generators that a loader or its samplers own go on from the epoch's seed."""
    owners = [loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
    owners.append(getattr(owners[-1], "sampler", None))
    for owner in owners:
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)


def _ints(order: torch.Tensor) -> list[int]:
    return order.tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _unchanged(batch: Any) -> Any:
    return batch
