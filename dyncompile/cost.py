"""Cost of a route: MACs of the path that each sample takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dyncompile.analysis.macs import Polynomial
from dyncompile.errors import RouteError
from dyncompile.program import Program, Route


@dataclass(frozen=True)
class _Term:
    """Monomials that depend on the same choices.

    Per choice a table [columns, monomials], and coefficients.
    """

    tables: dict[str, Tensor]
    coefficients: Tensor

    def value(self, rows: dict[str, Tensor], batch: int) -> Tensor:
        device = next((one.device for one in rows.values()), self.coefficients.device)
        total = self.coefficients.to(device).expand(batch, -1)
        for choice, table in self.tables.items():
            total = total * (rows[choice].to(torch.float64) @ table.to(device))
        return total.sum(1)


class Macs:
    """``Macs(program, polynomial)(route) -> [B]``: MACs per sample, float64, differentiable in the route.

    Exact at one-hot rows; multilinear in between (the expected cost of independent choices).
    """

    def __init__(self, program: Program, polynomial: Polynomial) -> None:
        self._choices = program.choices
        self._terms = _terms(program, polynomial)

    def __call__(self, route: Route) -> Tensor:
        """MACs of each row of `route`; a route must name every choice. Raises RouteError."""
        missing = sorted(set(self._choices) - set(route))
        if missing:
            raise RouteError(
                f"the route lacks the choices {missing}", fix="use the route that dyn.run returned"
            )
        batch = max((rows.shape[0] for rows in route.values()), default=1)
        device = _device(route)
        rows = {name: value.to(device).expand(batch, -1) for name, value in route.items()}
        none = torch.zeros(batch, dtype=torch.float64, device=device)
        return sum((term.value(rows, batch) for term in self._terms), none)


def _device(route: Route) -> torch.device:
    """Where decision nets ran; what policies decided without them lies on the CPU."""
    cpu = torch.device("cpu")
    return next((rows.device for rows in route.values() if rows.device != cpu), cpu)


def _terms(program: Program, polynomial: Polynomial) -> list[_Term]:
    grouped: dict[tuple[str, ...], list[tuple[dict[str, list[int]], int]]] = {}
    for monomial, coefficient in polynomial.items():
        vectors: dict[str, list[int]] = {}
        for elastic in monomial:
            sized = program.sized.get(elastic.name)
            if sized is None:
                coefficient *= elastic.size
                continue
            before = vectors.get(sized.choice, [1] * len(sized.sizes))
            vectors[sized.choice] = [a * b for a, b in zip(before, sized.sizes, strict=True)]
        grouped.setdefault(tuple(sorted(vectors)), []).append((vectors, coefficient))
    return [_term(choices, members) for choices, members in grouped.items()]


def _term(choices: tuple[str, ...], members: list[tuple[dict[str, list[int]], int]]) -> _Term:
    tables = {
        choice: torch.tensor([vectors[choice] for vectors, _ in members], dtype=torch.float64).T
        for choice in choices
    }
    return _Term(tables, torch.tensor([[n for _, n in members]], dtype=torch.float64))
