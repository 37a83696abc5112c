"""Finds the marked blocks of a text and fills them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

_BLOCK = re.compile(r"(<!-- table: (?!end\b)(\S+) -->\n)(.*?)(<!-- table: end -->)", re.DOTALL)
_MARK = re.compile(r"<!-- table: (\S+) -->")


def blocks(text: str) -> dict[str, str]:
    """Name -> content of every block. Raises ValueError for single marks and names used twice."""
    found = [(match[2], match[3]) for match in _BLOCK.finditer(text)]
    marks = [name for name in _MARK.findall(text) if name != "end"]
    if len(found) != len(marks) or len(found) != len(_MARK.findall(text)) - len(marks):
        raise ValueError(f"marks of tables do not pair up: {', '.join(marks)}")
    if len(set(marks)) != len(marks):
        raise ValueError("a table is marked twice")
    return dict(found)


def filled(text: str, renderers: Mapping[str, Callable[[Path], str]], results: Path) -> str:
    """The text with every block rendered anew.

    Raises ValueError for a name without a renderer, MissingResult for a block without data.
    """
    unknown = sorted(set(blocks(text)) - set(renderers))
    if unknown:
        raise ValueError(f"no table is named {', '.join(unknown)}; there are {', '.join(renderers)}")
    return _BLOCK.sub(lambda m: f"{m[1]}{renderers[m[2]](results)}\n{m[4]}", text)
