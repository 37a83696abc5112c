"""What Python does while a file is read: calls of the system, sockets, writes outside a folder.

It sees what goes through the interpreter; what C++ opens by itself it does not.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from typing import Any

_FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.spawn",
    "os.posix_spawn",
    "os.fork",
    "os.putenv",
    "subprocess.Popen",
    "socket.connect",
    "pickle.find_class",
)
"""`pickle.find_class` is the standard library's unpickling; torch's safe reader has its own."""
_CHANGES = (
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate"),
    *("os.chmod", "os.chown", "os.utime"),
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class _Watch:
    """Hooks cannot be taken out again: there is one, and it is off where `folder` is empty."""

    def __init__(self) -> None:
        self.folder = ""
        self.seen: list[str] = []
        sys.addaudithook(self._audit)

    def _audit(self, event: str, given: tuple[Any, ...]) -> None:
        if not self.folder:
            return
        changed = given if event in _CHANGES else ()
        if event == "open" and (given[2] or 0) & _WRITING:
            changed = given[:1]
        if event in _FORBIDDEN or not all(map(self._is_inside, changed)):
            self.seen.append(f"{event} {given}")

    def _is_inside(self, value: Any) -> bool:
        """Whether a path lies in the folder; what is no path (a mode, an open file) changes no other."""
        if not isinstance(value, str | bytes):
            return True
        return os.path.abspath(os.fsdecode(value)).startswith((f"{self.folder}{os.sep}", "/dev/"))


@cache
def _watch() -> _Watch:
    return _Watch()


@contextmanager
def watching(folder: str) -> Generator[list[str]]:
    """A list that fills with what should not happen, as long as the context is open."""
    watch, before = _watch(), sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # an import on the way is no attack
    watch.folder, watch.seen = folder, []
    try:
        yield watch.seen
    finally:
        watch.folder, sys.dont_write_bytecode = "", before
