"""Random CNNs and transformers: their types pass every check, and what is made of them keeps the contract.

Capturing takes most of the time, so each drawn network goes through all checks at once.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dyncompile as dc
from tests.nets import Net, cnns, networks, transformer_nets
from tests.support import FINE, example_of, subject_of
from tests.validity import assert_valid

FEW = settings(suppress_health_check=(HealthCheck.too_slow, HealthCheck.filter_too_much))


@pytest.mark.slow
@settings(FEW, max_examples=9)
@given(cnns())
def test_types_of_cnns(net: Net) -> None:
    assert_valid(subject_of(net))


@pytest.mark.slow
@settings(FEW, max_examples=7)
@given(transformer_nets())
def test_types_of_transformers(net: Net) -> None:
    assert_valid(subject_of(net))


@pytest.mark.slow
@settings(FEW, max_examples=5)
@given(networks(), st.sampled_from(("model", "stage", "dim")), st.booleans())
def test_contract(net: Net, per: str, embedding: bool) -> None:
    spec = f"dsnet({FINE}, per={per}, embedding={embedding})"
    dyn = dc.dynamize(net.module, spec, example_of(net))
    report = dc.verify(dyn, net.module, example_of(net))
    assert report.passed
