"""Settings from words: read as the function that takes them is annotated, or refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import pytest

import dyncompile as dc
from dyncompile.cli.settings import read_settings
from dyncompile.train import recipes


def settings(
    *,
    count: int = 1,
    share: float | None = 0.5,
    name: str = "a",
    kind: Literal["one", "two"] = "one",
    range: tuple[float, float] = (0.0, 1.0),
    weights: float | Mapping[str, float] = 1.0,
    noise: bool = True,
    call: Callable[[], int] | None = None,
) -> None:
    """Annotated as recipes are."""


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("count=3", 3),
        ("share=1", 1),
        ("share=None", None),
        ("name=5", "5"),
        ("name='b c'", "b c"),
        ("kind=two", "two"),
        ("range=[2, 0.5]", (2, 0.5)),
        ("weights={'exit': 2}", {"exit": 2}),
        ("noise=False", False),
        ("call=None", None),
    ],
)
def test_settings_are_read_as_annotated(word: str, value: Any) -> None:
    found = read_settings(settings, [word], "it")[word.partition("=")[0]]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "word",
    [
        "count=1.0",
        "count=True",
        "share=half",
        "kind=three",
        "range=1",
        "range=(1,)",
        "weights={1: 2}",
        "noise=1",
    ],
)
def test_settings_of_another_kind_are_refused(word: str) -> None:
    with pytest.raises(dc.SpecError, match=f"it: '{word.partition('=')[0]}' takes .*, got"):
        read_settings(settings, [word], "it")


def test_settings_that_no_word_can_say_are_told() -> None:
    with pytest.raises(
        dc.SpecError, match=r"'call' takes Callable\[\[\], int\] \| None, which no word"
    ) as caught:
        read_settings(settings, ["call=print"], "it")
    assert (
        caught.value.fix
        == "give it in Python; words can set: count, share, name, kind, range, weights, noise"
    )


@pytest.mark.parametrize("name", dir(recipes))
def test_recipes_are_annotated_so_that_their_defaults_can_be_said(name: str) -> None:
    defaults = getattr(recipes, name).__kwdefaults__
    words = [f"{key}={value!r}" for key, value in defaults.items()]
    assert read_settings(getattr(recipes, name), words, name) == defaults
