"""What a run of a dynamic model gives, and how mixed decisions are run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import Tensor

from dyncompile.errors import SpecError
from dyncompile.program import Route

Execution = Literal["auto", "sparse", "dense"]
"""How a batch of mixed decisions runs: rows grouped by decision, or masked; see `DynamicModel.record`."""

_EXECUTIONS: tuple[str, ...] = get_args(Execution)


def check_execution(execution: str) -> None:
    """Raises SpecError for words that name none."""
    if execution not in _EXECUTIONS:
        raise SpecError(f"no execution is named {execution!r}", fix=f"take one of {', '.join(_EXECUTIONS)}")


@dataclass(frozen=True, slots=True)
class Record:
    """What a run gave and what was decided on the way.

    Attributes:
        output: the source's output structure.
        route: decisions [B, width] of every choice; where gradients are on they carry them.
        logits: outputs [B, width] of the decision nets that were asked; nan in rows that had left before.
        early: dense execution only: what the output would be if all rows left, by the exit's choice.
    """

    output: Any
    route: Route
    logits: Mapping[str, Tensor]
    early: Mapping[str, Any] = field(default_factory=dict[str, Any])
