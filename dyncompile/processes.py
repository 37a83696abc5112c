"""Numbers that several processes have in common, where torch.distributed runs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist


def total(values: Tensor) -> Tensor:
    """`values` added up over all processes; they themselves where there is only this one. No gradient."""
    found = values.detach().clone()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        moved = found.to("cuda") if dist.get_backend() == "nccl" else found.cpu()
        dist.all_reduce(moved)  # pyright: ignore[reportUnknownMemberType]
        found = moved.to(values.device)
    return found


def mean_over_all(values: Tensor) -> tuple[float, int]:
    """(mean, number) of the `values` [B] of all processes; (0, 0) where there are none."""
    ours = values.detach().double().cpu()
    found = total(torch.stack([ours.sum(), torch.tensor(float(len(ours))).double()]))
    return float(found[0] / found[1].clamp(min=1)), int(found[1])
