"""Spec strings: a pass as text, ``name(field=value, ...)``, and back."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from dyncompile.errors import DyncompileError, SpecError
from dyncompile.registry import find_method
from dyncompile.torchlib import items

if TYPE_CHECKING:
    from dyncompile.pipeline import Pass


def render_spec(method: str, values: Mapping[str, Any]) -> str:
    """``method(field=value, ...)`` with Python literals; only the name without values."""
    if not values:
        return method
    return f"{method}({', '.join(f'{name}={value!r}' for name, value in values.items())})"


def parse_specs(method: str | Pass | Sequence[str | Pass], config: Mapping[str, Any]) -> list[Pass]:
    """Passes from whatever `dynamize` accepts; `config` holds further fields of a single named method."""
    many: list[Any] = items(method)
    if not many:
        raise SpecError("no method is given", fix='name one, e.g. method="dsnet"')
    if config and (len(many) != 1 or not isinstance(many[0], str)):
        raise SpecError(
            f"fields {sorted(config)} are given next to {method!r}, which is not one method's name",
            fix="put the fields into the pass or into its spec string",
        )
    return [parse_spec(one, config) if isinstance(one, str) else one for one in many]


def parse_spec(text: str, config: Mapping[str, Any] | None = None) -> Pass:
    """A pass from its text form. Raises SpecError with the position of what is wrong."""
    text = text.strip()
    name, given = _parse_call(text)
    cls = find_method(name)
    values = {**{key: value for key, (value, _) in given.items()}, **(config or {})}
    known = {f.name: f for f in fields(cls)}
    for key in values:
        if key not in known:
            at = given[key][1] if key in given else None
            raise SpecError(
                f"{name} has no field {key!r}{_nearest(key, known)}",
                where=None if at is None else _pointer(text, at),
                fix=f"its fields are: {', '.join(known)}",
            )
    try:
        return cls(**{key: _like(key, value, known[key]) for key, value in values.items()})
    except DyncompileError:
        raise
    except (TypeError, ValueError) as error:
        raise SpecError(f"{name}: {error}", where=text) from None


def _like(name: str, value: Any, known: Any) -> Any:
    """`value` in the type of the field's default: lists as tuples, so that specs hash, and ints as floats."""
    kind: Any = known.default.__class__
    if known.default is MISSING or known.default is None or type(value) is kind:
        return value
    if kind is tuple and isinstance(value, list):
        return tuple(items(value))
    if kind is float and type(value) is int:
        return float(value)
    raise TypeError(f"{name} takes a {kind.__name__}, got {value!r}")


def _parse_call(text: str) -> tuple[str, dict[str, tuple[Any, int]]]:
    """Name and keyword literals with their columns. Bare words count as strings: ``per=stage``."""
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise SpecError(
            f"cannot read the spec: {getattr(error, 'msg', type(error).__name__)}",
            where=_pointer(text, (getattr(error, "offset", None) or 1) - 1),
            fix='write it like "dsnet(ratios=[0.5, 1.0], per=stage)"',
        ) from None
    if isinstance(tree, ast.Name):
        return tree.id, {}
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name) or tree.args:
        raise SpecError("a spec is a method's name with keyword fields", where=text)
    return tree.func.id, {k.arg or "**": (_literal(k.value, text), k.col_offset) for k in tree.keywords}


def _literal(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Name):
        return node.id
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise SpecError(
            "only literals may be given in a spec", where=_pointer(text, node.col_offset)
        ) from None


def _pointer(text: str, column: int) -> str:
    return f"column {column + 1}\n      {text}\n      {' ' * column}^"


def _nearest(key: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(key, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""
