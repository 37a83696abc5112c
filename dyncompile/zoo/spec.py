"""What a model specification says, and what loading it gives."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any, Self

from torch import nn

from dyncompile.errors import SpecError

GRAMMAR = (
    "timm:NAME, torchvision:NAME, hf:CLASS_OR_FOLDER or package.module:function, then ?key=value&key=value"
)


@dataclass(frozen=True)
class Source:
    """A model in eval mode with inputs that it accepts: ``model(*args, **kwargs)`` runs.

    ``name`` is the specification that was loaded, so that a checkpoint can state where its model came from.
    """

    name: str
    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class ModelSpec:
    """``origin:name?key=value&key=value``; the values are Python literals, or strings where they are none."""

    origin: str
    name: str
    overrides: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a specification.

        Raises:
            SpecError: the text does not follow the grammar.
        """
        path, _, query = text.partition("?")
        origin, colon, name = path.partition(":")
        if not (colon and origin and name):
            raise SpecError(f"{text!r} is not a model specification", where=text, fix=f"write {GRAMMAR}")
        pairs = [_override(text, pair) for pair in query.split("&") if pair]
        repeated = sorted({key for key, _ in pairs if sum(other == key for other, _ in pairs) > 1})
        if repeated:
            raise SpecError(f"stated twice: {', '.join(repeated)}", where=text, fix="state each key once")
        return cls(origin, name, tuple(pairs))

    def __str__(self) -> str:
        query = "&".join(f"{key}={_literal(value)}" for key, value in self.overrides)
        return f"{self.origin}:{self.name}" + (f"?{query}" if query else "")


def _override(text: str, pair: str) -> tuple[str, Any]:
    key, equals, value = pair.partition("=")
    if not (equals and key.replace(".", "_").isidentifier()):
        raise SpecError(f"{pair!r} is not key=value", where=text, fix="for example ?num_classes=10&depth=2")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def _literal(value: object) -> str:
    """The shortest text that reads back as ``value``: a string stays bare unless it looks like a literal."""
    if not isinstance(value, str):
        return repr(value).replace(" ", "")
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
    return repr(value)
