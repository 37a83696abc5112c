"""What verification found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """One invariant: whether it holds, the largest absolute difference seen, and a remark."""

    name: str
    passed: bool
    difference: float = 0.0
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """All checks of one run."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check holds."""
        return all(check.passed for check in self.checks)

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        return "\n".join(
            f"{'ok  ' if c.passed else 'FAIL'} {c.name:<{width}}  "
            f"max abs diff {c.difference:.3g}  {c.detail}".rstrip()
            for c in self.checks
        )
