"""Hugging Face Accelerate and torch.distributed, of which much is untyped, behind one typed object."""

from __future__ import annotations

import importlib
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, distributed
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from dyncompile.errors import InputError, SpecError

Precision = Literal["no", "bf16", "fp16"]
T = TypeVar("T")


class World:
    """The processes that train together, this one's device, and its precision.

    Attributes:
        rank, count: this process among all of them; a plain ``python`` run is 0 of 1.
        device: where this process computes.
        precision: what autocast uses.
    """

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self.rank = int(accelerator.process_index)
        self.count = int(accelerator.num_processes)
        self.device = cast(torch.device, accelerator.device)
        self.precision = str(accelerator.mixed_precision)

    @property
    def main(self) -> bool:
        """Whether this process writes files, logs and shows progress."""
        return self.rank == 0

    # -- computing ----------------------------------------------------------------------------

    def autocast(self) -> AbstractContextManager[None]:
        """Forward passes and losses run in here."""
        return self._accelerator.autocast()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`, scaled where fp16 needs it."""
        scaled: Any = loss if self._scaler is None else self._scaler.scale(loss)
        scaled.backward()

    def update(
        self, optimizers: Sequence[Optimizer], parameters: Sequence[Tensor], clip: float | None
    ) -> None:
        """Unscale, clip and step. fp16 leaves out a step whose gradients overflowed."""
        if self._scaler is not None:
            for optimizer in optimizers:
                self._scaler.unscale_(optimizer)
        if clip is not None:
            cast(Any, torch.nn.utils).clip_grad_norm_(parameters, clip)
        for optimizer in optimizers:
            _step(optimizer) if self._scaler is None else self._scaler.step(optimizer)
        if self._scaler is not None:
            self._scaler.update()

    @property
    def scale(self) -> dict[str, Any] | None:
        """State of the fp16 loss scale; None in other precisions."""
        return None if self._scaler is None else dict(self._scaler.state_dict())

    def load_scale(self, state: Mapping[str, Any] | None) -> None:
        """Go on with a loss scale that was saved; one of another precision is ignored."""
        if self._scaler is not None and state:
            self._scaler.load_state_dict(dict(state))

    @property
    def _scaler(self) -> Any:
        return self._accelerator.scaler

    # -- processes ----------------------------------------------------------------------------

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.count > 1:
            cast(Any, distributed).all_reduce(tensor)
        return tensor

    def sum_numbers(self, numbers: Sequence[float]) -> list[float]:
        """Sums over all processes, in double precision."""
        if self.count == 1:
            return list(numbers)
        device = self.device if self.device.type == "cuda" else torch.device("cpu")
        return floats(self.sum(torch.tensor(numbers, dtype=torch.float64, device=device)))

    def broadcast(self, tensor: Tensor) -> None:
        """Overwrite with process 0's."""
        if self.count > 1:
            dense = tensor.contiguous()  # NCCL takes no other layout
            cast(Any, distributed).broadcast(dense, 0)
            tensor.copy_(dense)

    def gather(self, value: T) -> list[T]:
        """Every process's value, in order of rank."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        cast(Any, distributed).all_gather_object(found, value)
        return found

    def barrier(self) -> None:
        """Wait for every process."""
        self._accelerator.wait_for_everyone()

    def shard(self, loader: Any, *, even: bool) -> Any:
        """This process's part of a `DataLoader`; `even` repeats samples to make all parts of one length."""
        return _accelerate(".data_loader").prepare_data_loader(
            cast("DataLoader[Any]", loader),
            num_processes=self.count,
            process_index=self.rank,
            put_on_device=False,
            even_batches=even,
        )

    # -- trackers -----------------------------------------------------------------------------

    def start_trackers(self, config: Mapping[str, Any]) -> None:
        """Tell the trackers what run this is; `config` holds plain values."""
        self._accelerator.init_trackers("dyncompile", config=dict(config))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Hand numbers to the trackers."""
        if self._accelerator.trackers:
            self._accelerator.log(dict(values), step=step)

    def finish_trackers(self) -> None:
        """Flush and close the trackers. (`end_training` would end the process group, which is not ours.)"""
        for tracker in self._accelerator.trackers:
            tracker.finish()


@contextmanager
def world(precision: Precision | None, trackers: Sequence[Any], directory: Path | None) -> Generator[World]:
    """The world of one `fit`. What else in this process uses Accelerate finds it as it was.

    Raises:
        SpecError: an unknown precision or tracker.
        InputError: fp16 on a CPU.
    """
    if precision not in (None, "no", "bf16", "fp16"):
        raise SpecError(f"precision is no, bf16 or fp16, not {precision!r}")
    with _own_state():
        made = _accelerator(
            # Without this, Accelerate takes no notice of torchrun where there is no GPU.
            cpu=not torch.accelerator.is_available(),
            mixed_precision=precision,
            log_with=list(trackers) or None,
            project_dir=directory,
        )
        _check_count(made)
        if made.mixed_precision == "fp16" and made.device.type == "cpu":
            raise InputError("fp16 needs a GPU: gradients underflow without its loss scale", fix="take bf16")
        yield World(made)


def _accelerator(**settings: Any) -> Any:
    try:
        return _accelerate().Accelerator(**settings)
    except ValueError as error:
        raise SpecError(f"Accelerate refuses the precision or the trackers: {error}") from None


def _check_count(accelerator: Any) -> None:
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise InputError(
            f"{launched} processes were launched, but Accelerate was set up here for "
            f"{accelerator.num_processes} before",
            fix="let fit set it up, or create Accelerator(cpu=True) where there is no GPU",
        )


@contextmanager
def _own_state() -> Generator[None]:
    """Accelerate's settings are one per process, and a second precision is refused: set them aside."""
    shared: dict[str, Any] = _accelerate(".state").AcceleratorState._shared_state
    before = dict(shared)
    shared.clear()
    try:
        yield
    finally:
        shared.clear()
        shared.update(before)


def floats(values: Tensor) -> list[float]:
    """The numbers of a tensor [n]."""
    return values.tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _accelerate(part: str = "") -> Any:
    """A module of Accelerate, which has no stubs; only training pays for importing it."""
    return importlib.import_module(f"accelerate{part}")


def _step(optimizer: Optimizer) -> None:
    cast(Any, optimizer).step()
