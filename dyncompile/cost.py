"""Cost of a route: what it is, and MACs of the path that each sample takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, fx

from dyncompile.analysis.exits import exit_conditions
from dyncompile.analysis.facts import Facts
from dyncompile.analysis.macs import Polynomial, path_nodes, product
from dyncompile.analysis.skips import Condition, conditions, find_skips
from dyncompile.errors import RouteError
from dyncompile.program import Choice, Domain, Program, Route, activity

if TYPE_CHECKING:
    from dyncompile.runtime.model import DynamicModel


class Cost(Protocol):
    """What a sample costs, by its row of a route: float64 [B], differentiable in the route.

    Budgets and calibration hold shares of `source`, whatever the unit: `ModelMacs`, `dyncompile.Latency`.
    """

    @property
    def unit(self) -> str:
        """What is counted: "MACs", "seconds"."""
        ...

    @property
    def source(self) -> float:
        """Cost of the source per sample."""
        ...

    def __call__(self, route: Route) -> Tensor:
        """Cost of the path of each row. Raises RouteError where the route lacks a choice."""
        ...

    def spent(self, route: Route) -> Tensor:
        """Cost of each row of a learned route: its path, and the decisions that led it there."""
        ...


@dataclass(frozen=True)
class ModelMacs:
    """MACs of a dynamic model, as budgets take them."""

    dyn: DynamicModel
    unit: str = "MACs"

    @property
    def source(self) -> float:
        """MACs of the source per sample."""
        return self.dyn.static_macs

    def __call__(self, route: Route) -> Tensor:
        """See `DynamicModel.macs`."""
        return self.dyn.macs(route)

    def spent(self, route: Route) -> Tensor:
        """See `DynamicModel.spent`."""
        return self.dyn.spent(route)


@dataclass(frozen=True)
class _Term:
    """Monomials that depend on the same choices.

    Attributes:
        tables: choice -> sizes [columns, monomials] of what it sizes.
        picked: (choice, positions [columns], power) of what it keeps position by position.
        runs: (choice, [columns]): 1 at the columns at which the term runs at all.
        coefficients: [1, monomials].
    """

    tables: dict[str, Tensor]
    picked: tuple[tuple[str, Tensor, int], ...]
    runs: tuple[tuple[str, Tensor], ...]
    coefficients: Tensor

    def value(self, on: dict[str, Tensor], batch: int) -> Tensor:
        """MACs [batch] of rows, given which columns are on: float64 [batch, columns] per choice."""
        device = next((one.device for one in on.values()), self.coefficients.device)
        total = self.coefficients.to(device).expand(batch, -1)
        for choice, table in self.tables.items():
            total = total * (on[choice] @ table.to(device))
        for choice, sizes, power in self.picked:  # one block stays where none is on, as in execution
            least = float(sizes[0]) * (on[choice].detach() == 0).all(1)
            kept = on[choice] @ sizes.to(device) + least
            total = total * kept[:, None] ** power
        for choice, columns in self.runs:
            total = total * (on[choice] @ columns.to(device))[:, None]
        return total.sum(1)


class Macs:
    """``Macs(program, costs)(route) -> [B]``: MACs per sample, float64, differentiable in the route.

    `costs` are polynomials by node name; nodes of a branch that a row skips cost nothing, nor do those that
    only the exit needs which a row does not take. With `deciding`, what decisions read is needed, whether or
    not the path is (`exit_conditions`). Exact at one-hot rows; multilinear in between (the expected cost of
    independent choices). A gain, and the weight of an alternative, costs by whether it is above 0; its
    gradient is straight-through: that of the number itself.
    """

    def __init__(self, program: Program, costs: Mapping[str, Polynomial], *, deciding: bool = False) -> None:
        self._choices = program.choices
        with torch.inference_mode(False):  # gradients may pass later, wherever this is asked for first
            self._terms = _terms(program, costs, deciding=deciding)

    @property
    def choices(self) -> frozenset[str]:
        """Choices that the cost depends on."""
        found = (
            (*t.tables, *(name for name, *_ in t.picked), *(name for name, _ in t.runs)) for t in self._terms
        )
        return frozenset(name for names in found for name in names)

    def __call__(self, route: Route) -> Tensor:
        """MACs of each row of `route`; a route must name every choice. Raises RouteError."""
        on, none = switched_on(self._choices, route)
        return sum((term.value(on, len(none)) for term in self._terms), none)


class ByColumn:
    """Costs of which the row of a one-hot choice picks one: ``sum_k row[k] cost_k(route)``, float64 [B]."""

    def __init__(self, choice: Choice, costs: Sequence[Macs | ByColumn]) -> None:
        self._choice, self._costs = choice, tuple(costs)

    @property
    def choices(self) -> frozenset[str]:
        """Choices that the cost depends on."""
        return frozenset((self._choice.name,)).union(*(cost.choices for cost in self._costs))

    def __call__(self, route: Route) -> Tensor:
        """MACs of each row of `route`; a route must name every choice. Raises RouteError."""
        if self._choice.name not in route:
            raise RouteError(
                f"the route lacks the choices {[self._choice.name]}",
                fix="use the route that dyn.run returned",
            )
        return by_column(self._choice, self._costs, route)


def by_column(choice: Choice, costs: Sequence[Callable[[Route], Tensor]], route: Route) -> Tensor:
    """``sum_k row[k] cost_k(rest of the route)``: float64 [B]."""
    rows = route[choice.name].double()
    rest = {name: one for name, one in route.items() if name != choice.name}
    return (rows * torch.stack([cost(rest).to(rows.device) for cost in costs], 1)).sum(1)


def switched_on(choices: Mapping[str, Choice], route: Route) -> tuple[dict[str, Tensor], Tensor]:
    """(which columns each row of a route has on: float64 [B, columns] per choice, zeros [B]).

    Raises RouteError where the route lacks a choice, has others, or rows of other widths.
    """
    missing, unknown = sorted(set(choices) - set(route)), sorted(set(route) - set(choices))
    wrong = [name for name in choices if name in route and route[name].shape[-1] != choices[name].width]
    if missing or unknown or wrong:
        said = {
            "lacks the choices": missing,
            "names what are no choices:": unknown,
            "has other widths at": wrong,
        }
        problem = ", ".join(f"{what} {names}" for what, names in said.items() if names)
        raise RouteError(f"the route {problem}", fix="use the route that dyn.run returned")
    batch = max((rows.shape[0] for rows in route.values()), default=1)
    device = _device(route)
    rows = {name: value.to(device).expand(batch, -1) for name, value in route.items()}
    on = {name: _columns(choices[name], value.double()) for name, value in rows.items()}
    return on, torch.zeros(batch, dtype=torch.float64, device=device)


def _columns(choice: Choice, rows: Tensor) -> Tensor:
    """Which columns are on [B, columns]. An exit has two: whether a row stops, and whether it goes on."""
    return torch.cat([rows, 1 - rows], 1) if choice.domain is Domain.EXIT else activity(choice, rows)


def _device(route: Route) -> torch.device:
    """Where decision nets ran; what policies decided without them lies on the CPU."""
    cpu = torch.device("cpu")
    return next((rows.device for rows in route.values() if rows.device != cpu), cpu)


_Key = tuple[tuple[str, ...], tuple[tuple[str, int, int, int], ...], tuple[Condition, ...]]
"""What monomials of a term share: sizing choices; (choice, size, block, power) of picks; conditions."""


def _terms(program: Program, costs: Mapping[str, Polynomial], *, deciding: bool) -> list[_Term]:
    grouped: dict[_Key, list[tuple[dict[str, list[int]], int]]] = {}
    skipped = conditions(find_skips(program.graphs["eval"]))
    left = exit_conditions(program.graphs["eval"], deciding=deciding)
    when = {name: (*skipped.get(name, ()), *left.get(name, ())) for name in {*skipped, *left}}
    for node, polynomial in costs.items():
        for monomial, coefficient in polynomial.items():
            vectors: dict[str, list[int]] = {}
            picked: Counter[tuple[str, int, int]] = Counter()
            for elastic in monomial:
                if (one := program.picked.get(elastic.name)) is not None:
                    picked[one.choice, elastic.size, one.block] += 1
                elif (sized := program.sized.get(elastic.name)) is not None:
                    before = vectors.get(sized.choice, [1] * len(sized.sizes))
                    vectors[sized.choice] = [a * b for a, b in zip(before, sized.sizes, strict=True)]
                else:
                    coefficient *= elastic.size
            powers = tuple((*key, power) for key, power in sorted(picked.items()))
            key = tuple(sorted(vectors)), powers, when.get(node, ())
            grouped.setdefault(key, []).append((vectors, coefficient))
    return [_term(key, members) for key, members in grouped.items()]


def _term(key: _Key, members: list[tuple[dict[str, list[int]], int]]) -> _Term:
    choices, picked, runs = key
    tables = {
        choice: torch.tensor([vectors[choice] for vectors, _ in members], dtype=torch.float64).T
        for choice in choices
    }
    if not choices:
        members = [({}, sum(coefficient for _, coefficient in members))]
    return _Term(
        tables,
        tuple((choice, _blocks(size, block), power) for choice, size, block, power in picked),
        tuple((choice, torch.tensor([float(w > 0) for w in weights]).double()) for choice, weights in runs),
        torch.tensor([[n for _, n in members]], dtype=torch.float64),
    )


def _blocks(size: int, block: int) -> Tensor:
    """Positions per column: float64 [columns]; the last block may be shorter."""
    return torch.tensor([min(block, size - at) for at in range(0, size, block)], dtype=torch.float64)


def parameter_costs(graph: fx.Graph, facts: Facts) -> dict[str, Polynomial]:
    """Elements of the parameters on the data path, by the node that reads them, each parameter once.

    What several nodes read counts where the one that runs most often does.
    """
    on_path, when = path_nodes(graph, kernels=True), conditions(find_skips(graph))
    readers: dict[str, str] = {}
    for node in graph.nodes:
        name = str(node.target)
        if node.op != "get_attr" or name not in facts.parameters or node.name not in on_path:
            continue
        known = readers.setdefault(name, node.name)
        if len(when.get(node.name, ())) < len(when.get(known, ())):
            readers[name] = node.name
    return {reader: product(facts.dims.state[name]) for name, reader in readers.items()}
