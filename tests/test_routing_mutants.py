"""Seeded bugs in routing: each must be caught by a test of `tests.test_routing`.

A mutant replaces one function; it is caught where one of the named tests fails. Those of the pass build the
dynamic network anew and run in the long sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

import dyncompile as dc
from dyncompile import cost
from dyncompile.deploy.fold import _Folder  # pyright: ignore[reportPrivateUsage]
from dyncompile.passes import routing
from dyncompile.passes.routing import candidates, connections, narrowing, places
from dyncompile.program import Decision, Selection
from dyncompile.runtime import branches, flat, ops, takers
from dyncompile.runtime.branches import Join
from dyncompile.runtime.rows import select_rows
from dyncompile.runtime.takers import Takers
from tests import test_routing as tests

_SELECTED: Callable[..., None] = tests.test_selected_rows_are_what_the_rule_says.hypothesis.inner_test  # pyright: ignore

CHECKS: Mapping[str, Callable[[], None]] = {
    "sparse": partial(tests.test_rows_of_every_kind_give_what_networks_built_by_hand_give, "sparse"),
    "dense": partial(tests.test_rows_of_every_kind_give_what_networks_built_by_hand_give, "dense"),
    "two": partial(
        tests.test_a_single_route_is_its_static_network_in_values_macs_and_parameters, tests.ROUTES[-1]
    ),
    **{
        name: partial(tests.test_a_single_route_is_its_static_network_in_values_macs_and_parameters, one)
        for name, one in zip(tests.NAMES, tests.ROUTES, strict=False)
    },
    "idle": tests.test_what_no_row_takes_does_not_run,
    "selection": partial(_SELECTED, [2.0, 1.0, -1.0, -1.0], 0.2, 0),
    "the best": partial(_SELECTED, [2.0, 1.0, -1.0, -1.0], 0.9, 0),
    "learned": tests.test_routes_learned_by_random_routers_are_carried_out,
    "untrained": partial(tests.test_untrained_routers_keep_the_source, tests.Cnn, tests.BRANCHES),
    "trunk": tests.test_parts_of_the_trunk_have_alternatives,
    "plan": tests.test_what_a_connection_is_offered,
    "zero": tests.test_alternatives_can_start_at_zero,
    "again": tests.test_alternatives_are_the_same_every_time,
    "nested": tests.test_connections_do_not_lie_in_one_another,
    "written": tests.test_what_is_written_into_has_no_alternatives,
}


@dataclass(frozen=True)
class Mutant:
    """One bug: `owner.name` replaced by `wrong`."""

    label: str
    owner: Any
    name: str
    wrong: Any
    caught_by: str


def _whole_weights(decision: Decision, table: Any, weights: tuple[float, ...]) -> Takers:
    """Only rows of weight 1 take a branch."""
    gains = takers.gains_of(decision, weights)
    rows = (gains == 1).nonzero().flatten()
    return Takers(None if len(rows) == len(gains) else rows, len(rows), bool(len(rows)))


def _unweighted(decision: Decision, table: Any, weights: tuple[float, ...]) -> Takers:
    """Whatever a branch weighs, it is added whole."""
    found = takers.find_takers(decision, table, weights)
    return Takers(found.rows, found.count, neutral=True)


def _everybody(decision: Decision, table: Any, weights: tuple[float, ...]) -> Takers:
    """Every branch runs for every row."""
    return Takers(None, len(decision.rows), neutral=False)


def _other_rows(value: Any, found: Any, index: Tensor, rows: int) -> Any:
    return select_rows(value, found, (index + 1) % rows, rows)


def _not_normalized(self: Selection, probabilities: Tensor) -> Tensor:
    return probabilities * (probabilities >= self.threshold)


def _without_the_best(self: Selection, probabilities: Tensor) -> Tensor:
    left = probabilities * (probabilities >= self.threshold)
    return left / left.sum(1, keepdim=True).clamp_min(1e-9)


def _flipped(decision: Decision, weights: tuple[float, ...]) -> Tensor:
    return takers.gains_of(decision, weights).flip(0)


def _whole(self: Any, node: Any) -> list[float]:
    return [float(gain != 0) for gain in _GAINS(self, node)]


_GAINS = _Folder.__dict__["_gains"]

EXECUTION = (
    Mutant("half a weight is none", branches, "find_takers", _whole_weights, "two"),
    Mutant("weights are not applied", branches, "find_takers", _unweighted, "two"),
    Mutant("every row runs everything", branches, "find_takers", _everybody, "idle"),
    Mutant("a branch sees its neighbors' rows", branches, "select_rows", _other_rows, "sparse"),
    Mutant("weights of other rows", branches, "gains_of", _flipped, "sparse"),
    Mutant("masks weigh other rows", ops, "gains_of", _flipped, "dense"),
    Mutant("full capacity serves all routes", flat.Flat, "serves", lambda self, route: True, "sparse"),
    Mutant("a sum forgets its ReLU", Join, "_kept", lambda self, kept: kept, "identity"),
    Mutant("selected weights do not sum to 1", Selection, "kept", _not_normalized, "selection"),
    Mutant("nothing may be selected", Selection, "kept", _without_the_best, "the best"),
    Mutant("specialization forgets weights", _Folder, "_gains", _whole, "two"),
    Mutant("what is skipped costs", cost, "conditions", lambda found: {}, "identity"),
)


def _larger(self: candidates.Separable, place: Any, kernel: int, stride: Any) -> None:
    _SEPARABLE(self, place, kernel + 2, stride)


_SEPARABLE = candidates.Separable.__init__
_BUILD = places.build


def _random(names: Any, place: Any, *, zero: bool = False) -> Any:
    with patch.object(torch, "manual_seed", lambda seed: None):
        return _BUILD(names, place, zero=zero)


def _sizes(*args: Any) -> dict[str, Any]:
    return {name: size + 1 for name, size in _SIZES(*args).items()}


_SIZES = narrowing._sizes  # pyright: ignore[reportPrivateUsage]


def _own_router(self: Any, drafts: Any) -> Any:
    return _GATES(replace(self, per="connection"), drafts)


_GATES = routing.Routing._gates  # pyright: ignore[reportPrivateUsage]

BUILDING = (
    Mutant("identity adds its input", candidates, "identity", lambda place: nn.Identity(), "identity"),
    Mutant("a larger kernel", candidates.Separable, "__init__", _larger, "separable3"),
    Mutant("no norm at the end", candidates.Place, "end", lambda self: [], "lowrank"),
    Mutant("narrow copies one wider", narrowing, "_sizes", _sizes, "narrow"),
    Mutant("no activation at the end", places, "ending", lambda node, flow: (True, None), "trunk"),
    Mutant("alternatives start at random", routing, "build", _random, "again"),
    Mutant("the original is free", routing, "own_macs", lambda one, facts: 0, "plan"),
    Mutant("routers share nothing", routing.Routing, "_gates", _own_router, "plan"),
    Mutant("zero is random", places, "_zeroed", lambda module: module, "zero"),
    Mutant("connections nest", connections, "_apart", list, "nested"),
    Mutant(
        "what is overwritten is read",
        connections._Finder,  # pyright: ignore[reportPrivateUsage]
        "_overwritten",
        lambda self, entry: None,
        "written",
    ),
)


def _is_caught(mutant: Mutant) -> bool:
    with patch.object(mutant.owner, mutant.name, mutant.wrong):
        try:
            CHECKS[mutant.caught_by]()
        except (AssertionError, dc.DyncompileError, KeyError, RuntimeError, pytest.fail.Exception):
            return True
    return False


@pytest.mark.parametrize("mutant", EXECUTION, ids=lambda one: one.label)
def test_bugs_of_execution_are_caught(mutant: Mutant) -> None:
    known = vars(tests.dynamic(tests.Cnn))
    costs = {name: known.pop(name) for name in ("path_cost", "_parameter_cost") if name in known}
    assert _is_caught(mutant)
    known.update(costs)


@pytest.mark.zoo
@pytest.mark.parametrize("mutant", BUILDING, ids=lambda one: one.label)
def test_bugs_of_the_pass_are_caught(mutant: Mutant) -> None:
    tests.dynamic.cache_clear()
    with patch.dict(candidates._CANDIDATES, {"identity": lambda place: candidates.identity(place)}):  # pyright: ignore
        assert _is_caught(mutant)
    tests.dynamic.cache_clear()
