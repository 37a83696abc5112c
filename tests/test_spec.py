"""Spec strings: a pass prints as text that parses back; what cannot be understood is pointed at."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dyncompile as dc
from dyncompile.pipeline import Pass, spec_of
from dyncompile.registry import AMBIGUOUS, methods
from dyncompile.spec import parse_spec, parse_specs
from tests import handmade
from tests.support import subject

RATIOS = st.floats(0.01, 1.0, allow_nan=False).map(lambda ratio: round(ratio, 3))
WORDS = st.text("abcz_.[]()'\"\\ 0", max_size=8)
PATTERNS = st.sampled_from(("", "stage1", r"blocks\.\d+\.fc1", "a|b", "it's", 'say "x"', r"\[0\]$"))
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "ratios": st.lists(RATIOS, min_size=1, max_size=5).map(tuple),
        "per": st.sampled_from(("model", "stage", "block")),
        "gate": st.booleans(),
        "start": st.integers(0, 9),
        "hidden": st.integers(0, 99),
        "grid": st.integers(1, 9),
        "divisor": st.integers(1, 64),
        "minimum": st.integers(1, 64),
        "embedding": st.booleans(),
        "include": PATTERNS,
        "exclude": PATTERNS,
        "name": WORDS,
    },
)


@settings(max_examples=60)
@given(FIELDS)
def test_specs_parse_back(fields: dict[str, Any]) -> None:
    one = methods()["dsnet"](**fields)
    text = spec_of(one)
    assert parse_spec(text) == one
    assert spec_of(parse_spec(text)) == text


@pytest.mark.parametrize("method", sorted(methods()))
def test_defaults_print_as_the_bare_name(method: str) -> None:
    one: Pass = methods()[method]()
    assert spec_of(one) == method
    assert parse_spec(method) == one
    assert parse_spec(f"{method}()") == one
    assert hash(one) == hash(parse_spec(f"  {method}  "))


def test_forms_of_the_same_pass() -> None:
    wanted = methods()["dsnet"](ratios=(0.5,), per="stage")
    for method, config in [
        ("dsnet(ratios=[0.5], per=stage)", {}),
        ("dsnet( ratios = (0.5, 1.0) , per = 'stage' )", {}),
        ("dsnet", {"ratios": [0.5], "per": "stage"}),
        ("dsnet(per=stage)", {"ratios": (1, 0.5)}),
        (wanted, {}),
        ([wanted], {}),
    ]:
        assert parse_specs(method, config) == [wanted]
    assert parse_specs(["dsnet", wanted, "dsnet(divisor=2)"], {})[1] is wanted


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("dsnet(ratio=0.5)", 7, "dsnet has no field 'ratio'; did you mean 'ratios'?"),
        ("dsnet(per=stage, embeding=True)", 18, "dsnet has no field 'embeding'; did you mean 'embedding'?"),
        ("   dsnet(xyz=1)", 7, "dsnet has no field 'xyz'"),
        ("dsnet(ratios=[0.5)", 18, "cannot read the spec"),
        ("dsnet(divisor=1+x)", 15, "only literals may be given in a spec"),
        ("dsnet(name=__import__('os'))", 12, "only literals may be given in a spec"),
    ],
)
def test_errors_point_at_the_place(text: str, column: int, message: str) -> None:
    with pytest.raises(dc.SpecError) as caught:
        parse_spec(text)
    lines = str(caught.value).splitlines()
    assert message in lines[0]
    assert f"column {column}" in lines[1]
    assert lines[2].strip() == text.strip()
    assert lines[3].index("^") - lines[2].index("d") == column - 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dsnet('x')", "a method's name with keyword fields"),
        ("dsnet.x()", "a method's name with keyword fields"),
        ("1 + 1", "a method's name with keyword fields"),
        ("dsnet(**{})", "dsnet has no field"),
        ("", "cannot read the spec"),
        ("(" * 500, "cannot read the spec"),
        ("dsnet(name='\0')", "cannot read the spec"),
        ("dsnet(ratios=[0, 0.5])", r"ratios must lie in (0, 1], got [0]"),
        ("dsnet(ratios=[1.5, -1])", r"ratios must lie in (0, 1], got [1.5, -1]"),
        ("dsnet(ratios=[])", "ratios must lie in (0, 1], got none"),
        ("dsnet(ratios=0.5)", "ratios takes a tuple, got 0.5"),
        ("dsnet(ratios=['a'])", "dsnet: "),
        ("dsnet(divisor=2.5)", "divisor takes a int, got 2.5"),
        ("dsnet(divisor=True)", "divisor takes a int, got True"),
        ("dsnet(embedding=yes)", "embedding takes a bool, got 'yes'"),
        ("dsnet(per=layer)", "per must be model, stage, block or dim, got 'layer'"),
        ("dsnet(divisor=0)", "divisor and minimum must be at least 1"),
        ("dsnet(include='(')", "'(' is not a regular expression"),
    ],
)
def test_what_makes_no_sense(text: str, message: str) -> None:
    with pytest.raises(dc.SpecError) as caught:
        parse_spec(text)
    assert message in str(caught.value)


def test_unknown_methods_name_the_nearest() -> None:
    with pytest.raises(dc.SpecError, match="there is no method 'dsnett'; did you mean 'dsnet'"):
        parse_spec("dsnett")
    with pytest.raises(dc.SpecError) as caught:
        parse_spec("qqq")
    assert "did you mean" not in str(caught.value)
    assert all(method in str(caught.value) for method in methods())


@pytest.mark.parametrize("text", ["drnet", "drnet(per=stage)"])
def test_drnet_names_both_papers(text: str) -> None:
    with pytest.raises(dc.SpecError) as caught:
        parse_spec(text)
    assert "'drnet' is the short name of two methods" in str(caught.value)
    for method in AMBIGUOUS["drnet"]:
        assert f"- {method}: " in str(caught.value)
    assert "name the one that you mean" in str(caught.value)


@pytest.mark.parametrize(
    ("method", "config", "message"),
    [
        (["dsnet", "dsnet"], {"per": "dim"}, "fields ['per'] are given next to"),
        ([], {}, "no method is given"),
        ("dsnet", {"pr": "dim"}, "dsnet has no field 'pr'; did you mean 'per'?"),
        ("dsnet", {"ratios": (2.0,)}, "ratios must lie in (0, 1], got [2.0]"),
    ],
)
def test_what_dynamize_is_given(method: Any, config: dict[str, Any], message: str) -> None:
    module, example = handmade.plain_cnn()
    with pytest.raises(dc.SpecError) as caught:
        dc.dynamize(module, method, example, **config)
    assert message in str(caught.value)


def test_fields_of_a_pass_that_is_given_as_an_object_cannot_be_added() -> None:
    with pytest.raises(dc.SpecError, match="which is not one method's name"):
        parse_specs(methods()["dsnet"](), {"per": "dim"})


def test_history_holds_specs_that_parse_back() -> None:
    dyn = subject(handmade.plain_cnn).dynamic(
        ["dsnet(minimum=2, divisor=2, include='2.0')", "dsnet(divisor=3, minimum=1, name='b')"]
    )
    first, second = "dsnet(divisor=2, minimum=2, include='2.0')", "dsnet(divisor=3, minimum=1, name='b')"
    assert dyn.history == (first, second)
    assert [spec_of(parse_spec(spec)) for spec in dyn.history] == list(dyn.history)
