"""Use of routes, counted by hand on constructed routes."""

from __future__ import annotations

import math

import pytest
import torch

from dyncompile.program import Choice, Domain, Route
from dyncompile.train.diagnostics import Summary, Tally, summarize

WIDTH = Choice("width", Domain.ONE_HOT, (0.0, 0.0, 1.0), (1.0, 0.0, 0.0), ("0.25", "0.5", "1"))
LAYERS = Choice("layers", Domain.BITS, (1.0, 1.0), (0.0, 0.0), ("a", "b"))
CHOICES = {"width": WIDTH, "layers": LAYERS}


def route(columns: list[int], bits: list[list[int]]) -> Route:
    rows = torch.nn.functional.one_hot(torch.tensor(columns), 3).float()
    return {"width": rows, "layers": torch.tensor(bits).float()}


MIXED = (
    route([0, 0, 2, 2], [[1, 0], [1, 0], [1, 1], [0, 0]]),
    route([0, 0, 0, 2], [[1, 0], [1, 0], [0, 0], [1, 1]]),
)


def test_numbers_by_hand() -> None:
    found = summarize(MIXED, CHOICES)
    assert (found.samples, found.unique, found.possible) == (8, 4, 12)
    assert found.choices["width"].columns == (5 / 8, 0.0, 3 / 8)
    assert found.choices["layers"].columns == (6 / 8, 2 / 8)
    assert found.choices["width"].labels == ("0.25", "0.5", "1")
    assert found.top == 4 / 8
    width = -(5 / 8 * math.log(5 / 8) + 3 / 8 * math.log(3 / 8))
    layers = -(4 / 8 * math.log(4 / 8) + 4 / 8 * math.log(2 / 8))
    joint = -(4 / 8 * math.log(4 / 8) + 2 / 8 * math.log(2 / 8) + 2 / 8 * math.log(1 / 8))
    assert found.choices["width"].entropy == pytest.approx(width)
    assert found.choices["layers"].entropy == pytest.approx(layers)
    assert found.entropy == pytest.approx(joint)


def test_routes_may_be_a_stream_and_batches_do_not_matter() -> None:
    whole = {name: torch.cat([one[name] for one in MIXED]) for name in CHOICES}
    assert summarize(iter(MIXED), CHOICES) == summarize([whole], CHOICES)


def test_memory_grows_with_distinct_routes_only() -> None:
    tally = Tally({"width": WIDTH})
    for _ in range(100):
        tally.add({"width": torch.eye(3).repeat(50, 1)})
    assert tally.summary().samples == 15_000
    assert len(tally._routes) == 3  # pyright: ignore[reportPrivateUsage]


def test_training_routes_carry_gradients_and_are_hard_up_to_rounding() -> None:
    rows = torch.tensor([[1e-9, 0.9999999, 0.0], [1.0, 1e-9, 0.0]], requires_grad=True)
    assert summarize([{"width": rows}], {"width": WIDTH}).choices["width"].columns == (0.5, 0.5, 0.0)


def test_gains_count_as_on_or_off_and_mixtures_by_their_largest_part() -> None:
    gains = Choice("gains", Domain.GAINS, (1.0, 1.0), (0.0, 0.0))
    mixture = Choice("mixture", Domain.SIMPLEX, (0.5, 0.5), (1.0, 0.0))
    rows = {
        "gains": torch.tensor([[0.2, 0.0], [3.0, 0.0]]),
        "mixture": torch.tensor([[0.4, 0.6], [0.1, 0.9]]),
    }
    found = summarize([rows], {"gains": gains, "mixture": mixture})
    assert found.unique == 1
    assert found.choices["gains"].columns == (1.0, 0.0)
    assert found.choices["mixture"].columns == (0.0, 1.0)
    assert found.choices["gains"].labels == ("0", "1")


def of_columns(*columns: int) -> Summary:
    rows = torch.nn.functional.one_hot(torch.tensor(columns), 3).float()
    return summarize([{"width": rows}], {"width": WIDTH})


def test_one_route_for_all_is_collapse() -> None:
    (text,) = of_columns(*[1] * 40).warnings()
    assert "all 40 samples take one of 3 routes" in text
    assert "learning rate" in text


def test_a_column_that_is_never_used_is_named() -> None:
    (text,) = of_columns(*[0, 2] * 20).warnings()
    assert "'width' never takes 0.5 (of 0.25, 0.5, 1)" in text


def test_healthy_routing_and_small_samples_say_nothing() -> None:
    assert of_columns(*[0, 1, 2] * 10).warnings() == ()
    assert of_columns(0, 0, 0).warnings() == ()
    assert of_columns(*[0, 2] * 7).warnings() == ()


def test_a_single_possible_route_is_no_collapse() -> None:
    only = Choice("only", Domain.ONE_HOT, (1.0,), (1.0,))
    assert summarize([{"only": torch.ones(50, 1)}], {"only": only}).warnings() == ()


@pytest.mark.parametrize("choices", [{}, CHOICES])
def test_nothing_to_count(choices: dict[str, Choice]) -> None:
    found = summarize([], choices)
    assert (found.samples, found.unique, found.top, found.entropy) == (0, 0, 0.0, 0.0)
    assert found.warnings() == ()
    assert summarize([{}], {}).samples == 0
