"""Damaged and hostile files: nothing but the library's own error may come of them.

``python -m benchmarks fuzz`` runs 10,000 in ten minutes; `tests/test_fuzz.py` some hundred. An audit hook
watches for calls of the system, sockets, and writes outside the working folder; the peak of the process's
memory tells an input that took more than its due.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import resource
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file
from torch import nn

import dyncompile as dc
from benchmarks.record import write
from dyncompile.foreign import load_state, read_state_dict

COUNT = 10_000
LARGEST = 200
"""MB by which one input may raise the most memory that the process ever held."""
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
_WATCHED = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "os.putenv",
)
_WRITES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate")


@dataclass
class Outcome:
    """What came of the inputs: how many of each kind, and everything that should not have happened."""

    counts: Counter[str] = field(default_factory=Counter[str])
    failures: list[str] = field(default_factory=list[str])


class _Watch:
    """Records what an audit hook sees while it is on; hooks cannot be taken out again, so there is one."""

    def __init__(self) -> None:
        self.folder = ""
        self.seen: list[str] = []
        sys.addaudithook(self._audit)

    def _audit(self, event: str, given: tuple[Any, ...]) -> None:
        if not self.folder:
            return
        if event in _WATCHED:
            self.seen.append(f"{event} {given}")
        opens = event == "open" and isinstance(given[1], str) and set(given[1]) & set("wax+")
        if (opens or event in _WRITES) and not self._inside(given[0]):
            self.seen.append(f"{event} {given}")

    def _inside(self, path: Any) -> bool:
        text = os.fsdecode(path) if isinstance(path, str | bytes) else ""
        return not text or os.path.abspath(text).startswith((self.folder, "/dev/"))


_WATCH: list[_Watch] = []


def network() -> nn.Module:
    """Small, with all that checkpoints hold: norms, statistics, a counter."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    ).eval()


def prepare(folder: Path) -> dict[str, Path]:
    """Sound files to start from: what is read -> the folder or the file."""
    dyn = dc.dynamize(network(), "dsnet(divisor=1, minimum=1, gate=False)", torch.randn(2, 3, 8, 8))
    state = network().state_dict()
    dc.save(dyn, folder / "saved")
    dc.save(dyn, folder / "sharded", shard_size=100)
    torch.save(state, folder / "new.pth")
    torch.save({"state_dict": state}, folder / "old.pt", _use_new_zipfile_serialization=False)
    save_file(state, folder / "plain.safetensors")
    return {path.name: path for path in folder.iterdir()}


def run_inputs(count: int, seed: int, folder: Path, show: Callable[[Any], Any] = iter) -> Outcome:
    """Mutate and read `count` inputs in `folder`."""
    draw, outcome = random.Random(seed), Outcome()
    _WATCH[:] = _WATCH or [_Watch()]
    (folder / "sound").mkdir(parents=True)
    sound = prepare(folder / "sound")
    for number in show(range(count)):
        place = folder / "input"
        place.mkdir()
        name = draw.choice(list(sound))
        target = place / name
        kind = _mutate(draw, sound[name], target, folder / "owned")
        peak = _peak()
        _WATCH[0].folder, _WATCH[0].seen = str(place), []
        try:
            _read(target, alone=draw.random() < 0.7)
            outcome.counts["read"] += 1
        except dc.DyncompileError:
            outcome.counts["refused"] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            outcome.failures.append(f"{seed}:{number} {name} {kind}: {type(error).__name__}: {error}"[:300])
        finally:
            _WATCH[0].folder = ""
        outcome.failures += [f"{seed}:{number} {name} {kind}: {seen}"[:300] for seen in _WATCH[0].seen]
        if _peak() - peak > LARGEST:
            outcome.failures.append(f"{seed}:{number} {name} {kind}: took {_peak() - peak} MB")
        outcome.counts[kind] += 1
        if (folder / "owned").exists() or sorted(os.listdir(folder)) != ["input", "sound"]:
            outcome.failures.append(f"{seed}:{number} {name} {kind}: wrote outside")
        _clear(place)
    return outcome


def _peak() -> int:
    """The most memory that the process has held so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def _clear(place: Path) -> None:
    for path in sorted(place.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    place.rmdir()


def _read(target: Path, *, alone: bool) -> None:
    """As users do: a folder `alone` or with its source, a file into its architecture."""
    if target.is_dir():
        dc.load(target, source=None if alone else network())
    else:
        load_state(network(), read_state_dict(target))


# -- mutations --------------------------------------------------------------------------------------


def _mutate(draw: random.Random, sound: Path, target: Path, owned: Path) -> str:
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
        kinds = [_truncate, _flip, *[_edit_json] * 6]
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


def run(count: int = COUNT, seed: int = 0) -> dict[str, Any]:
    """Figures by label; raises SystemExit where anything went wrong."""
    before, began = _peak(), time.process_time()

    def shown(numbers: Any) -> Any:
        return track(numbers, description="fuzz", console=Console(stderr=True))

    with tempfile.TemporaryDirectory() as folder:
        outcome = run_inputs(count, seed, Path(folder).resolve() / "work", shown)
    figures = {
        **dict(outcome.counts),
        "failures": len(outcome.failures),
        "peak memory grew by MB": _peak() - before,
        "CPU seconds": round(time.process_time() - began),
    }
    write("fuzz", {"inputs": count, "seed": seed, **figures})
    if outcome.failures:
        raise SystemExit("\n".join(outcome.failures))
    return figures


if __name__ == "__main__":
    print(run(*map(int, sys.argv[1:])))
