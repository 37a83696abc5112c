"""Types are right: hand-made networks hold at random widths, and seeded bugs are noticed.

Shapes that agree at one ratio prove little, so every elastic dim gets a width of its own; and shapes are not
enough, so what is masked is compared with what is sliced.
"""

from __future__ import annotations

import pytest

from dyncompile.analysis.dims.validate import random_widths, run_narrowed
from dyncompile.errors import ContractError
from tests import handmade
from tests.mutants import MUTANTS, Mutant, misc
from tests.support import Make, subject
from tests.validity import Trial, assert_valid, first_failure

NETS = (
    handmade.resnet,
    handmade.headless,
    handmade.plain_cnn,
    handmade.grouped,
    handmade.depthwise_se,
    handmade.dense,
    handmade.shuffle,
    handmade.vit,
    handmade.unknown_op_vit,
    handmade.bert_like,
    handmade.decoder,
    handmade.flatten_cnn,
    handmade.two_inputs,
    handmade.multi_output,
    handmade.buffer_constant,
    handmade.dtype_literals,
    misc,
)


@pytest.mark.parametrize("make", NETS)
def test_types_hold_at_random_widths(make: Make) -> None:
    """The control of the seeded bugs: the rules as they are pass every check."""
    assert_valid(subject(make))


def test_widths_are_independent_and_reproducible() -> None:
    facts = subject(handmade.resnet).facts
    drawn = [random_widths(facts, seed) for seed in range(20)]
    assert drawn[3] == random_widths(facts, 3)
    assert all(1 <= n <= facts.dims.elastic[name].dim.size for widths in drawn for name, n in widths.items())
    first, second = list(facts.dims.elastic)[:2]
    assert len({(widths[first], widths[second]) for widths in drawn}) > 10


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "_"))
def test_seeded_bugs_are_noticed(mutant: Mutant) -> None:
    one = subject(mutant.make)
    assert one.facts.dims.elastic, "the control comes first"
    with mutant.seeded():
        failed = first_failure(one)
    assert failed is not None, "no check notices"
    assert failed[0] == mutant.caught_by, failed[1]


def test_wrong_shapes_are_reported_by_node() -> None:
    """The interpreter that checks shapes names the node, what it has and what its type says."""
    (mutant,) = (one for one in MUTANTS if one.name == "conv lets its kernel move")
    one = subject(mutant.make)
    with mutant.seeded():
        trial = Trial(one)
        widths = {"0.0.weight[2]": 2}
        with pytest.raises(
            ContractError, match=r"conv2d has shape \[2, 6, 9, 8\], its type says \[2, 6, 8, 8\]"
        ):
            run_narrowed(one.program, trial.facts, widths, one.flat)
