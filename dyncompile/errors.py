"""One family of errors: what failed, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self


class DyncompileError(Exception):
    """Base of every error that dyncompile raises on purpose.

    Args:
        problem: the fact that stopped the work, one sentence.
        where: the node, pass specification or source line it concerns.
        fix: what the user can do about it.
    """

    def __init__(self, problem: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.problem = problem
        self.where = where
        self.fix = fix
        lines = [problem]
        if where:
            lines.append(f"  at: {where}")
        if fix:
            lines.append(f"  do: {fix}")
        super().__init__("\n".join(lines))

    @classmethod
    def of_all(cls, what: str, offenders: Sequence[str], *, fix: str | None = None) -> Self:
        """One error that names every offender, so that none is found only after the next run."""
        listed = "".join(f"\n  - {offender}" for offender in offenders)
        return cls(f"{what} ({len(offenders)}):{listed}", fix=fix)


class SpecError(DyncompileError):
    """A method, pass specification, model specification or option that cannot be understood."""


class CaptureError(DyncompileError):
    """A model that cannot be captured as a graph."""


class RuleError(DyncompileError):
    """A rule of the dimension types contradicts the trace: a defect of dyncompile, not of the model."""


class InputError(DyncompileError):
    """Inputs that do not fit the captured signature."""


class NoSiteError(DyncompileError):
    """A pass found nothing in the model that it could act on."""


class RouteError(DyncompileError):
    """A route that names unknown choices or holds rows outside a choice's domain."""


class ContractError(DyncompileError):
    """A dynamic model breaks an invariant that it promises; after `verify`, `report` holds every check."""

    report: Any = None


class CheckpointError(DyncompileError):
    """A checkpoint that is damaged, foreign, or of another model."""


class TrainingError(DyncompileError):
    """Training that cannot go on: a loss that is no longer finite."""


class DyncompileWarning(UserWarning):
    """Base of every warning that dyncompile gives on purpose: work goes on, its result may disappoint."""
