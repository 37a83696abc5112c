"""E-mails of the benchmark on text: what is read of them, and that near-duplicates never part."""

from __future__ import annotations

import io
import random
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.text import data, files, mails
from benchmarks.text.files import File
from benchmarks.text.mails import Mail
from dyncompile.errors import DyncompileError

PARTS = b"""From: a@example.org
Subject: =?utf-8?q?Re=3A_caf=C3=A9?=
List-Id: secret-list
Content-Type: multipart/alternative; boundary=x

--x
Content-Type: text/html

<html><style>p {color: red}</style><p>marked &amp; up</p></html>
--x
Content-Type: text/plain; charset=no-such-charset

  plain
text
--x--
"""


def test_the_plain_part_is_read_and_headers_are_not() -> None:
    mail = mails.parse(File("ham/1", False, PARTS))
    assert (mail.subject, mail.body) == ("café", "plain text")
    assert "secret" not in mail.text


def test_html_is_read_without_tags_scripts_and_styles() -> None:
    page = b"<head>no</head><b>5 &lt; 6</b><script>no</script>"
    raw = b"Subject: [List] Fwd: re: hi\nContent-Type: text/html\n\n" + page
    mail = mails.parse(File("spam/1", True, raw))
    assert (mail.subject, mail.body) == ("hi", "5 < 6")


def words(count: int, seed: int) -> str:
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("abcdefghij", k=6)) for _ in range(count))


def test_near_duplicates_and_threads_are_groups() -> None:
    base, other = words(40, 0), words(40, 1)
    changed = " ".join([*base.split()[:30], *words(10, 2).split()])
    found = [
        Mail("1", "one", base, False),
        Mail("2", "two", changed, False),  # three quarters of the text
        Mail("3", "three", other, False),
        Mail("4", "Three!", words(40, 3), False),  # the subject
        Mail("5", "five", words(40, 4), False),
        Mail("6", "", other, False),  # no subject: the text alone
    ]
    found_groups = mails.groups(found)
    assert [found_groups.index(group) for group in found_groups] == [0, 0, 2, 2, 4, 2]


def test_what_everyone_writes_links_nobody() -> None:
    signature = words(12, 9)
    found = [Mail(str(i), f"subject {words(2, i)}", words(30, 100 + i) + signature, False) for i in range(80)]
    assert len(set(mails.groups(found))) == 80


def test_groups_never_part_and_parts_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "SIZES", {"test": 40, "validation": 20, "train": 60})
    found = [
        Mail(f"{i}.{copy}", f"{copy} {words(2, 50 + copy)}", words(30, i), spam=i % 3 == 0)
        for i in range(120)
        for copy in range(3)
    ]
    parts = data.split([Mail(m.name, m.name, m.body, m.spam) for m in found])
    assert {name: len(part) for name, part in parts.items()} == data.SIZES
    where = {name: {mail.name.split(".")[0] for mail in part} for name, part in parts.items()}
    assert not where["test"] & where["train"]
    assert not where["test"] & where["validation"]
    assert not where["validation"] & where["train"]
    assert max(Counter(m.name.split(".")[0] for part in parts.values() for m in part).values()) == 2
    for part in parts.values():
        assert sum(mail.spam for mail in part) / len(part) == pytest.approx(1 / 3, abs=0.03)
    assert data.split([Mail(m.name, m.name, m.body, m.spam) for m in found]) == parts
    with pytest.raises(DyncompileError, match="too few"):
        data.split(found[:60])


def test_a_foreign_package_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mails.tgz"
    path.write_bytes(b"not it")
    with pytest.raises(DyncompileError, match="SHA-256"):
        files.locate(path)


def test_files_are_read_where_they_lie(tmp_path: Path) -> None:
    path = tmp_path / "mails.tgz"
    members = {
        "data/spam-1/b.txt": b"2",
        "data/easy-ham-1/a.txt": b"1",
        "data/spam-1/b.json": b"",
        "lib/x.txt": b"",
    }
    with tarfile.open(path, "w:gz") as package:
        for name, content in members.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            package.addfile(info, io.BytesIO(content))
    found = [(one.name, one.spam, one.content) for one in files.read(path)]
    assert found == [("easy-ham-1/a.txt", False, b"1"), ("spam-1/b.txt", True, b"2")]
    assert [path] == list(tmp_path.iterdir())
