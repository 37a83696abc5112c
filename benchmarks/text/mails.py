"""From files to texts, and which of them are nearly the same.

A text is the subject without list tags and reply marks, then the readable part of the body. Headers are left
out: they name mailing lists and dates, and those alone tell ham from spam in this corpus.
"""

from __future__ import annotations

import email
import email.errors
import email.header
import html
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from email.message import Message
from itertools import combinations

from benchmarks.text.files import File

_MARKS = re.compile(r"^\s*(?:(?:re|fw|fwd|aw)\s*:|\[[^\]]*\])\s*", re.IGNORECASE)
_HIDDEN = re.compile(r"<(script|style|head)\b.*?</\1>|<!--.*?-->", re.IGNORECASE | re.DOTALL)
_TAGS = re.compile(r"<[^>]*>")
_WORDS = re.compile(r"[a-z]+")

READ = 60
"""Words of a text by which near-duplicates are found: more than twice what the network sees."""
_SHINGLE = 4
_COMMON = 60
"""Shingles in more mails than this tell nothing (signatures of lists); equal texts are found without them."""
_ALIKE = 0.4
"""Share of the shorter text's shingles that makes two texts near-duplicates."""


@dataclass(frozen=True, slots=True)
class Mail:
    """One e-mail: what it is called, what is read of it, what it is."""

    name: str
    subject: str
    body: str
    spam: bool

    @property
    def text(self) -> str:
        """What the network is given."""
        return f"{self.subject}\n{self.body}"


def parse(file: File) -> Mail:
    """The readable text; whatever an old mail program has left broken is read as well as it can be."""
    message = email.message_from_bytes(file.content)
    subject = _subject(str(message.get("Subject", "")))
    return Mail(file.name, subject, " ".join(_body(message).split()), file.spam)


def _subject(raw: str) -> str:
    try:
        text = str(email.header.make_header(email.header.decode_header(raw)))
    except (LookupError, UnicodeError, email.errors.HeaderParseError):
        text = raw
    while (shorter := _MARKS.sub("", text)) != text:
        text = shorter
    return " ".join(text.split())


def _body(message: Message) -> str:
    """The first plain part, else the first part of HTML without its tags."""
    parts = [part for part in message.walk() if part.get_content_maintype() == "text"]
    plain = [part for part in parts if part.get_content_subtype() == "plain"]
    for part in (*plain, *parts):
        text = _decoded(part)
        if part.get_content_subtype() != "plain" or "<html" in text[:500].lower():
            text = html.unescape(_TAGS.sub(" ", _HIDDEN.sub(" ", text)))
        if text.strip():
            return text
    return ""


def _decoded(part: Message) -> str:
    content = part.get_payload(decode=True)
    if not isinstance(content, bytes):
        return ""
    try:
        return content.decode(part.get_content_charset() or "latin-1", "replace")
    except LookupError:  # a charset that nobody knows
        return content.decode("latin-1")


# -- near-duplicates --------------------------------------------------------------------------------


def groups(mails: Sequence[Mail]) -> list[int]:
    """A number per mail; mails that share it are linked by near-equal texts or by their subject (threads)."""
    root = list(range(len(mails)))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for a, b in (*_same_subject(mails), *_alike(mails)):
        root[find(b)] = find(a)
    return [find(i) for i in range(len(mails))]


def _same_subject(mails: Sequence[Mail]) -> Iterable[tuple[int, int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for i, mail in enumerate(mails):
        found[" ".join(_WORDS.findall(mail.subject.lower()))].append(i)
    return [(same[0], i) for words, same in found.items() if words for i in same[1:]]


def _alike(mails: Sequence[Mail]) -> Iterable[tuple[int, int]]:
    """Pairs whose shingles overlap; equal texts are linked whatever they hold."""
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    equal: dict[tuple[str, ...], int] = {}
    sizes: list[int] = []
    linked: list[tuple[int, int]] = []
    for i, mail in enumerate(mails):
        words = tuple(_WORDS.findall(mail.text.lower())[:READ])
        if words in equal:
            linked.append((equal[words], i))
        equal.setdefault(words, i)
        shingles = {words[j : j + _SHINGLE] for j in range(max(1, len(words) - _SHINGLE + 1))}
        sizes.append(len(shingles))
        for shingle in shingles:
            holders[shingle].append(i)
    shared: Counter[tuple[int, int]] = Counter()
    for same in holders.values():
        if len(same) <= _COMMON:
            shared.update(combinations(same, 2))
    linked += [(a, b) for (a, b), n in shared.items() if n >= _ALIKE * min(sizes[a], sizes[b])]
    return linked
