"""What can be refused before anything moves, and what identifies a training when it is resumed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import Field, fields, is_dataclass
from typing import Any

from dyncompile.cost import Cost
from dyncompile.errors import InputError, SpecError
from dyncompile.runtime.model import DynamicModel
from dyncompile.train.columns import check_target
from dyncompile.train.optim import trainable
from dyncompile.train.phase import ADDED, Phase, Recipe, Turn

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def check_recipe(dyn: DynamicModel, recipe: Recipe, *, validated: bool, cost: Cost | None = None) -> None:
    """Refuse a recipe that does not fit the model or the data.

    Raises:
        SpecError: it is for another method, trains what the model does not have, or asks for less than
            the smallest route costs.
        InputError: it keeps the best epoch, and there is no validation data.
    """
    methods = [spec.partition("(")[0].strip() for spec in dyn.history]
    if recipe.method and recipe.method not in methods:
        raise SpecError(
            f"recipe {recipe.name!r} is for {recipe.method!r}, the model was made by {methods}",
            fix=f"dynamize with {recipe.method!r}, or take the recipe of the model's method",
        )
    if recipe.target is not None:
        check_target(dyn, recipe.target, cost)
    for phase in recipe.phases:
        trainable(dyn, phase)
        if phase.keep == "best" and not validated:
            raise InputError(
                f"phase {phase.name!r} keeps its best epoch, and there is no validation data",
                fix="pass val_data, or a phase with keep='last'",
            )


def describe_training(dyn: DynamicModel, recipe: Recipe, **more: Any) -> dict[str, Any]:
    """Plain values that two runs must share for one to go on where the other stopped."""
    return {
        "fingerprint": dyn.program.fingerprint,
        "recipe": recipe.name,
        "target": recipe.target,
        "phases": [_describe_phase(phase) for phase in recipe.phases],
        **more,
    }


def _describe_phase(phase: Phase) -> dict[str, Any]:
    told = [f for f in fields(phase) if f.name != "turns" and not _is_new(f, getattr(phase, f.name))]
    values = {f.name: _plain(getattr(phase, f.name)) for f in told}
    return {**values, "turns": [_describe_turn(turn) for turn in phase.turns]}


def _is_new(field: Field[Any], value: Any) -> bool:
    return field.metadata.get(ADDED, False) and value == field.default


def _describe_turn(turn: Turn) -> dict[str, Any]:
    terms = {name: _named(term) for name, term in turn.terms.items()}
    return {"terms": terms, "execution": turn.execution, "view": turn.view is not None}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    return value


def _named(term: Any) -> str:
    """A term's configuration where it is a dataclass, else its name; never an address."""
    if is_dataclass(term) and not isinstance(term, type):
        return _ADDRESS.sub("", repr(term))
    return getattr(term, "__qualname__", type(term).__qualname__)


def plain_values(description: Mapping[str, Any]) -> dict[str, Any]:
    """The top level of a description as values that every tracker takes."""
    return {
        key: value if isinstance(value, int | float | str) else str(value)
        for key, value in description.items()
    }
