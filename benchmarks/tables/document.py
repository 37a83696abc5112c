"""Finds the marked blocks and figures of a text and fills them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

Renderers = Mapping[str, Callable[[Path], str]]
_BLOCK = re.compile(r"(<!-- table: (?!end\b)(\S+) -->\n)(.*?)(<!-- table: end -->)", re.DOTALL)
_MARK = re.compile(r"<!-- table: (\S+) -->")
_FIGURE = re.compile(r"(<!-- figure: (\S+) -->)([^<]*)(<!-- end -->)")
_FIGURE_MARK = re.compile(r"<!-- (?:figure: \S+|end) -->")


def blocks(text: str) -> dict[str, str]:
    """Name -> content of every block. Raises ValueError for single marks and names used twice."""
    found = [(match[2], match[3]) for match in _BLOCK.finditer(text)]
    marks = [name for name in _MARK.findall(text) if name != "end"]
    if len(found) != len(marks) or len(found) != len(_MARK.findall(text)) - len(marks):
        raise ValueError(f"marks of tables do not pair up: {', '.join(marks)}")
    if len(set(marks)) != len(marks):
        raise ValueError("a table is marked twice")
    return dict(found)


def figures(text: str) -> list[str]:
    """Names of the figures in sentences. Raises ValueError for single marks."""
    found = [match[2] for match in _FIGURE.finditer(text)]
    if 2 * len(found) != len(_FIGURE_MARK.findall(text)):
        raise ValueError(f"marks of figures do not pair up: {', '.join(found)}")
    return found


def filled(text: str, tables: Renderers, numbers: Renderers, results: Path) -> str:
    """The text with every block and every figure rendered anew.

    Raises ValueError for a name without a renderer, MissingResult for one without data.
    """
    for kind, names, known in (("table", blocks(text), tables), ("figure", figures(text), numbers)):
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise ValueError(f"no {kind} is named {', '.join(unknown)}; there are {', '.join(known)}")
    text = _BLOCK.sub(lambda m: f"{m[1]}{tables[m[2]](results)}\n{m[4]}", text)
    return _FIGURE.sub(lambda m: f"{m[1]}{numbers[m[2]](results)}{m[4]}", text)
