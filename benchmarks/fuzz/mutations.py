"""Sound files with one thing wrong: cut, flipped, edited, or made to attack whoever reads them.

A mutation takes the bytes of a file and where an attack that succeeds is to leave its mark; it gives bytes.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

_HOSTILE: tuple[Any, ...] = (
    "../../../outside",
    "/etc/passwd",
    "os.system",
    "__import__('os').system('touch owned')",
    "aten.from_file.default",
    "\0",
    "",
    None,
    True,
    -1,
    1 << 15,
    1 << 31,
    1 << 62,
    1 << 200,
    1e308,
    [],
    {},
    [[[[]]]],
    {"node": "input"},
    {"list": [1 << 40]},
    "float32",
    "nn",
)


def mutate(draw: random.Random, sound: Path, target: Path, owned: Path) -> str:
    """Copy a sound folder or file to `target` with one of its files damaged; returns how.

    An attack that succeeds makes the file `owned`.
    """
    if sound.is_dir():
        target.mkdir()
        for path in sound.iterdir():
            (target / path.name).write_bytes(path.read_bytes())
        victim = draw.choice(sorted(target.iterdir()))
    else:
        victim = target
        victim.write_bytes(sound.read_bytes())
    kinds = [_truncate, _flip, _insert, _repeat]
    if victim.suffix == ".json":
        kinds = [_truncate, _flip, *[_edit_json] * 6, *[_exchange] * 2]
    elif victim.suffix == ".safetensors":
        kinds += [_edit_header] * 3
    else:
        kinds += [_bomb, _traverse, *[_attack] * 3]
    kind = draw.choice(kinds)
    victim.write_bytes(kind(draw, victim.read_bytes(), owned))
    return kind.__name__.removeprefix("_")


def _truncate(draw: random.Random, content: bytes, owned: Path) -> bytes:
    return content[: draw.randrange(len(content))]


def _flip(draw: random.Random, content: bytes, owned: Path) -> bytes:
    flipped = bytearray(content)
    reach = draw.choice([64, 1024, len(content)])
    for _ in range(draw.choice([1, 3, 20])):
        flipped[draw.randrange(min(reach, len(content)))] ^= 1 << draw.randrange(8)
    return bytes(flipped)


def _insert(draw: random.Random, content: bytes, owned: Path) -> bytes:
    at = draw.randrange(len(content))
    return content[:at] + draw.randbytes(draw.choice([1, 8, 300])) + content[at:]


def _repeat(draw: random.Random, content: bytes, owned: Path) -> bytes:
    at = draw.randrange(len(content))
    return content[:at] + content[at // 2 :]


def _edit_json(draw: random.Random, content: bytes, owned: Path) -> bytes:
    found = json.loads(content)
    for _ in range(draw.choice([1, 1, 2, 5])):
        _edit(draw, found)
    return json.dumps(found).encode(errors="surrogatepass")


def _edit(draw: random.Random, value: Any) -> None:
    """Replace, delete or move something at a random depth."""
    while isinstance(value, dict | list) and value:
        key = draw.choice(list(value)) if isinstance(value, dict) else draw.randrange(len(value))
        inner = value[key]
        if not isinstance(inner, dict | list) or not inner or draw.random() < 0.15:
            what = draw.random()
            if what < 0.6:
                value[key] = draw.choice(_HOSTILE)
            elif what < 0.75:
                del value[key]
            elif isinstance(value, dict):
                value[str(draw.choice(_HOSTILE))] = value.pop(key)
            else:
                value.insert(draw.randrange(len(value)), inner)
            return
        value = inner


def _exchange(draw: random.Random, content: bytes, owned: Path) -> bytes:
    """Two parts of the file change places: graphs of two sizes, a name and a node, whatever."""
    found = json.loads(content)
    (one, here), (other, there) = (_place(draw, found) for _ in range(2))
    one[here], other[there] = other[there], one[here]
    try:
        return json.dumps(found).encode(errors="surrogatepass")
    except ValueError:  # one was a part of the other
        return content[: len(content) // 2]


def _place(draw: random.Random, value: Any) -> tuple[Any, Any]:
    """A dict or list at a random depth of `value`, which has entries, and a key in it."""
    while True:
        key = draw.choice(list(value)) if isinstance(value, dict) else draw.randrange(len(value))
        inner = value[key]
        if not isinstance(inner, dict | list) or not inner or draw.random() < 0.3:
            return value, key
        value = inner


def _edit_header(draw: random.Random, content: bytes, owned: Path) -> bytes:
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    _edit(draw, header)
    text = json.dumps(header).encode()
    length = draw.choice([len(text), len(text), len(text), 1 << 62, 0])
    return length.to_bytes(8, "little") + text + content[8 + size :]


def _bomb(draw: random.Random, content: bytes, owned: Path) -> bytes:
    """A few kilobytes that a reader unfolds to a quarter of a gigabyte or more."""
    return _bombs()[draw.randrange(len(_bombs()))]


@cache
def _bombs() -> tuple[bytes, ...]:
    """A tensor in a compressed archive, and objects that are made from a number, in both formats of torch."""
    made = [_compressed()]
    for call in (_Call(bytearray, 1 << 30), _Call(torch.Tensor, 1 << 28), _Call(torch.Tensor, 1 << 50)):
        for zipped in (True, False):
            file = io.BytesIO()
            torch.save({"0.weight": call}, file, _use_new_zipfile_serialization=zipped)
            made.append(file.getvalue())
    return tuple(made)


def _compressed() -> bytes:
    """`torch.save` of a tensor of zeros, its 256 MB of values compressed to a thousandth."""
    plain, made = io.BytesIO(), io.BytesIO()
    torch.save({"0.weight": torch.zeros(1)}, plain)
    values = bytes(1 << 20)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in old.infolist():
            if not entry.filename.endswith("/data/0"):
                archive.writestr(entry, old.read(entry), zipfile.ZIP_STORED)
                continue
            with archive.open(entry.filename, "w") as opened:
                for _ in range(1 << 8):
                    opened.write(values)
    return made.getvalue()


def _traverse(draw: random.Random, content: bytes, owned: Path) -> bytes:
    """The same archive with names that lead elsewhere."""
    made = io.BytesIO()
    lead = draw.choice(["../../", "/tmp/", "..\\..\\", "archive/../../"])
    try:
        entries = zipfile.ZipFile(io.BytesIO(content)).infolist()
    except zipfile.BadZipFile:
        return lead.encode() + content
    with zipfile.ZipFile(made, "w") as archive, zipfile.ZipFile(io.BytesIO(content)) as old:
        for entry in entries:
            archive.writestr(lead + entry.filename, old.read(entry))
    return made.getvalue()


class _Call:
    """Unpickling this calls a function."""

    def __init__(self, function: Any, *given: Any) -> None:
        self._made = function, given

    def __reduce__(self) -> Any:
        return self._made


def _attack(draw: random.Random, content: bytes, owned: Path) -> bytes:
    """A pickle that would run code, in the new or the old format, or bare."""
    call = draw.choice(
        [
            _Call(os.system, f"touch {owned}"),
            _Call(eval, f"open({str(owned)!r}, 'w')"),
            _Call(getattr, "text", "upper"),
            _Call(torch.hub.load, str(owned), "x"),
            _Call(torch.load, str(owned)),
            _Call(open, str(owned), "w"),
            _Call(__import__, "antigravity"),
        ]
    )
    holder = draw.choice([call, {"0.weight": call}, [call], {"state_dict": {"x": (call,)}}])
    made = io.BytesIO()
    how = draw.randrange(3)
    if how == 2:
        return pickle.dumps(holder, protocol=draw.randrange(5))
    torch.save(holder, made, _use_new_zipfile_serialization=how == 0)
    return made.getvalue()
