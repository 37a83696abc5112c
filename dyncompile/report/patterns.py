"""Long lists of similar names in few words: names that differ in numbers only become one pattern."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

_NUMBER = re.compile(r"(\d+)")
_LISTED = 4
"""As many different numbers are listed one by one; more become a range if they have no gap."""

Slots = tuple[tuple[str, ...], ...]
"""Per number of a template the values that it takes."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """Names that differ in numbers only. `text` shows the numbers in braces, ``layer{1,2}.{0..5}.conv1``, and
    stands for exactly these names: every combination of its numbers is one of them.
    """

    text: str
    names: tuple[str, ...]


def template(text: str) -> str:
    """`text` without its numbers: what all names of one pattern share."""
    return _NUMBER.sub("#", text)


def patterns(names: Iterable[str]) -> tuple[Pattern, ...]:
    """Names folded into patterns, in order of first appearance; equal names count once."""
    alike: dict[str, list[list[str]]] = {}
    for name in dict.fromkeys(names):
        alike.setdefault(template(name), []).append(_NUMBER.split(name))
    return tuple(pattern for members in alike.values() for pattern in _exact(members))


def fold(alike: Iterable[str]) -> str:
    """One text for texts of the same template, with all numbers that occur in each place."""
    columns = zip(*map(_NUMBER.split, alike), strict=True)
    return "".join(_slot(list(dict.fromkeys(parts))) for parts in columns)


def _exact(members: Sequence[Sequence[str]]) -> Iterator[Pattern]:
    texts = members[0][::2]
    for slots in _cover([tuple(parts[1::2]) for parts in members]):
        shown = _woven(texts, [_slot(values) for values in slots])
        yield Pattern(shown, tuple(_woven(texts, values) for values in product(*slots)))


def _cover(rows: Sequence[tuple[str, ...]]) -> list[Slots]:
    """Rows of numbers as few products of sets: equal remainders share their first number."""
    if not rows[0]:
        return [()]
    rests: dict[str, list[tuple[str, ...]]] = {}
    for first, *rest in rows:
        rests.setdefault(first, []).append(tuple(rest))
    firsts: dict[Slots, list[str]] = {}
    for first, found in rests.items():
        for slots in _cover(found):
            firsts.setdefault(slots, []).append(first)
    return [(tuple(values), *slots) for slots, values in firsts.items()]


def _woven(texts: Sequence[str], numbers: Sequence[str]) -> str:
    return "".join(text + number for text, number in zip(texts, [*numbers, ""], strict=True))


def _slot(found: Sequence[str]) -> str:
    if len(found) == 1:
        return found[0]
    numbers = sorted(map(int, found))
    if len(numbers) > _LISTED and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{{{numbers[0]}..{numbers[-1]}}}"
    return f"{{{','.join(map(str, numbers))}}}"
