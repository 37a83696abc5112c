"""Settings of a function from ``key=value`` words, which must fit its annotations."""

from __future__ import annotations

import ast
import difflib
import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from dyncompile.errors import SpecError


def read_settings(function: Callable[..., Any], words: Sequence[str], who: str) -> dict[str, Any]:
    """Arguments by name; values are Python literals, or text.

    Args:
        function: is annotated throughout.
        words: ``key=value`` each.
        who: whose settings they are, for messages.

    Raises:
        SpecError: a word is no setting, or its value is not of the kind that the setting takes.
    """
    kinds = {name: kind for name, kind in get_type_hints(function).items() if name != "return"}
    pairs = [_split(word) for word in words]
    unknown = [key for key, _ in pairs if key not in kinds]
    if unknown:
        near = difflib.get_close_matches(unknown[0], list(kinds), 1)
        fix = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(kinds)}"
        raise SpecError(f"{who} has no setting {', '.join(map(repr, unknown))}", fix=fix)
    return {key: _value(key, text, kinds, who) for key, text in pairs}


def _split(word: str) -> tuple[str, str]:
    key, equals, text = word.partition("=")
    if not equals:
        raise SpecError(f"{word!r} is not KEY=VALUE", fix="for example --set target=0.4")
    return key, text


def _value(key: str, text: str, kinds: Mapping[str, Any], who: str) -> Any:
    """The literal if it fits, else the text if that does: ``choice=5`` may be a name."""
    kind = kinds[key]
    value = _literal(text)
    for read in (value, text):
        if _fits(read, kind):
            return read
    if not _can_be_written(kind):
        known = ", ".join(name for name, kind in kinds.items() if _can_be_written(kind))
        raise SpecError(
            f"{who}: {key!r} takes {_told(kind)}, which no word can say, got {text!r}",
            fix=f"give it in Python; words can set: {known}",
        )
    raise SpecError(
        f"{who}: {key!r} takes {_told(kind)}, got {value!r}", fix=f"give --set {key}= such a value"
    )


def _literal(text: str) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return tuple(cast("list[Any]", value)) if isinstance(value, list) else value


def _told(kind: Any) -> str:
    """``Schedule | None``: names without their modules."""
    return re.sub(r"(?:\w+\.)+(?=[A-Za-z_])", "", inspect.formatannotation(kind))


def _fits(value: Any, kind: Any) -> bool:
    """Whether a literal is of an annotated kind; ints are floats, bools are neither."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inside)
    if origin is Literal:
        return value in inside
    if origin is tuple:
        return isinstance(value, tuple) and _all_fit(cast("tuple[Any, ...]", value), inside)
    if origin is Mapping:
        return isinstance(value, dict) and _entries_fit(cast("dict[Any, Any]", value), *inside)
    return type(value) in (int, float) if kind is float else type(value) is kind


def _all_fit(values: tuple[Any, ...], kinds: tuple[Any, ...]) -> bool:
    return len(values) == len(kinds) and all(map(_fits, values, kinds))


def _entries_fit(entries: dict[Any, Any], key: Any, value: Any) -> bool:
    return all(_fits(one, key) and _fits(other, value) for one, other in entries.items())


def _can_be_written(kind: Any) -> bool:
    """Whether some literal but None fits."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return any(map(_can_be_written, get_args(kind)))
    return origin in (Literal, tuple, Mapping) or kind in (bool, int, float, str)
