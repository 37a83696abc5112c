"""State that was cast after capture, by ``dyn.bfloat16()`` and the like.

Graphs and passes are replayed in the types of capture, which the inputs have; then the state is cast again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dyncompile.state import Dtypes, cast_state, dtypes_of
from dyncompile.stored.calling import read_dtype
from dyncompile.torchlib import is_several, items


def describe_casts(model: nn.Module, captured: Dtypes) -> list[dict[str, Any]]:
    """JSON of what has another type than it was captured with; empty where nothing has."""
    present = dtypes_of(model)
    names: dict[tuple[torch.dtype, torch.dtype], list[str]] = defaultdict(list)
    for name, before in captured.items():
        if present.get(name, before) is not before:
            names[before, present[name]].append(name)
    return [{"from": _word(a), "to": _word(b), "names": found} for (a, b), found in names.items()]


def are_casts(described: Any) -> bool:
    """Whether JSON describes casts."""
    try:
        return is_several(described) and all(
            read_dtype(one["from"]).is_floating_point
            and read_dtype(one["to"]).is_floating_point
            and all(isinstance(name, str) for name in one["names"])
            for one in items(described)
        )
    except (KeyError, TypeError, ValueError):
        return False


def as_captured(tensors: Mapping[str, Tensor], casts: Any) -> dict[str, Tensor]:
    """`tensors` in the types of capture."""
    before = _dtypes(casts, "from")
    return {name: tensor.to(before.get(name, tensor.dtype)) for name, tensor in tensors.items()}


def cast_again(model: nn.Module, casts: Any) -> None:
    """Give state that was cast its later type, in place: what is tied stays tied."""
    cast_state(model, _dtypes(casts, "to"))


def _dtypes(casts: Any, side: str) -> Dtypes:
    return {name: read_dtype(one[side]) for one in casts for name in one["names"]}


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
