"""Types of random CNNs and transformers pass every check, order and repetition of the graphs included.

Capturing takes most of the time, so each drawn network goes through all checks at once. That what is made of
random networks keeps the contract is in `test_contract`.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.nets import Net, cnns, transformer_nets
from tests.support import subject_of
from tests.validity import assert_valid

# Shrinking would take minutes; a failure prints the expression that builds its network anyway.
FEW = settings(
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.filter_too_much),
    phases=(Phase.explicit, Phase.generate),
)


@pytest.mark.slow
@settings(FEW, max_examples=7)
@given(cnns())
def test_types_of_cnns(net: Net) -> None:
    assert_valid(subject_of(net))


@pytest.mark.slow
@settings(FEW, max_examples=5)
@given(transformer_nets())
def test_types_of_transformers(net: Net) -> None:
    assert_valid(subject_of(net))
