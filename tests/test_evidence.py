"""What the benchmarks of coverage and of counting say about a contender, and about us."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.counting import truth
from benchmarks.counting.cases import CASES
from benchmarks.counting.run import own
from benchmarks.peers.subject import Converted, measure

SPEC = "tests.test_zoo:image_net?width=4"


def contender(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], **changes: Any) -> Converted:
    """One that keeps the network, and says that its convolution has a choice."""
    parts = {"full": model, "smallest": model, "elastic": frozenset({"0.weight"}), "skippable": frozenset()}
    return Converted(**{**parts, "blocks": 0, **changes})


def test_shares_are_of_the_parameters_of_the_source() -> None:
    found = measure(SPEC, contender)
    sizes = 4 * 9, 4, 3 * 4 * 28 * 28, 3
    assert found["elastic"] == found["supernet"] == round(sizes[0] / sum(sizes), 4)
    assert (found["difference"], found["smallest"], found["blocks"]) == (0.0, "", 0)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda x: torch.zeros(len(x), 2), "outputs of other shapes"),
        (lambda x: torch.full((len(x), 3), torch.nan), "not finite"),
        (lambda x: [][0], "IndexError"),
    ],
)
def test_what_does_not_run_is_told(wrong: Any, says: str) -> None:
    found = measure(SPEC, lambda m, a, k: contender(m, a, k, smallest=wrong))
    assert says in found["smallest"]


def test_a_difference_and_an_error_are_told() -> None:
    off = measure(SPEC, lambda m, a, k: contender(m, a, k, full=lambda x: m(x) + 0.5))
    assert off["difference"] == pytest.approx(0.5, abs=1e-5)

    def fails(*_: Any) -> Converted:
        raise ValueError("no idea")

    assert measure(SPEC, fails)["error"].startswith("ValueError: no idea (test_evidence.py:")


def test_known_totals() -> None:
    assert truth.resnet18() == 1_814_073_344
    assert round(truth.vit() / 1e9, 2) == 17.56


@pytest.mark.parametrize(
    "name", ["`F.conv2d` on a computed weight", "transposed convolutions", "3D convolutions"]
)
def test_ours_is_the_derived_count(name: str) -> None:
    assert own(*CASES[name].make(2)) == (CASES[name].macs, [])


def test_an_unknown_cost_is_named() -> None:
    macs, unmodeled = own(*CASES["LSTM"].make(2))
    assert macs < CASES["LSTM"].macs
    assert unmodeled == ["aten.lstm.input"]
