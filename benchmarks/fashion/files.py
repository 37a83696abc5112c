"""Where Fashion-MNIST's four files come from: Debian's package, installed or unpacked without root.

Fashion-MNIST: Xiao, Rasul and Vollgraf, 2017 (arXiv 1708.07747); MIT license.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from dyncompile.errors import DyncompileError

SYSTEM = Path("/usr/share/datasets/fashion-mnist")
LOCAL = Path(__file__).parents[2] / ".data" / "fashion-mnist"

PACKAGE = "dataset-fashion-mnist"
VERSION = "0.0~git20200523.55506a9-1"
SHA256 = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}


def locate(system: Path = SYSTEM, local: Path = LOCAL) -> Path:
    """The folder that holds the four files, checked; fetched into `local` where no folder has them.

    Raises:
        DyncompileError: files are damaged, or there is no way to fetch them.
    """
    for folder in (system, local):
        if folder.is_dir():
            return check(folder)
    fetch(local)
    return check(local)


def check(folder: Path) -> Path:
    """`folder`, if all four files have the expected SHA-256; else an error that names every offender."""
    found = {name: _digest(folder / name) for name in SHA256}
    wrong = [
        f"{name}: {found[name]}, expected {SHA256[name]}" for name in SHA256 if found[name] != SHA256[name]
    ]
    if wrong:
        raise DyncompileError.of_all(
            f"files of Fashion-MNIST in {folder} are missing or damaged", wrong, fix=f"delete {folder}"
        )
    return folder


def fetch(folder: Path) -> None:
    """Download the pinned Debian package with apt and unpack it into `folder`: needs no root.

    Raises:
        DyncompileError: apt or dpkg is missing or fails.
    """
    missing = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        raise DyncompileError(
            f"Fashion-MNIST comes as a Debian package; missing: {missing}", fix=_by_hand(folder)
        )
    with tempfile.TemporaryDirectory() as scratch:
        _run(["apt-get", "download", f"{PACKAGE}={VERSION}"], Path(scratch), folder)
        package = next(Path(scratch).glob("*.deb"))
        _run(["dpkg-deb", "-x", str(package), "unpacked"], Path(scratch), folder)
        unpacked = check(Path(scratch) / "unpacked" / SYSTEM.relative_to("/"))
        _put(unpacked, folder)


def _put(unpacked: Path, folder: Path) -> None:
    """The folder appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder.parent))
    for name in SHA256:
        shutil.copyfile(unpacked / name, aside / name)
    aside.chmod(0o755)
    aside.rename(folder)


def _run(command: list[str], scratch: Path, folder: Path) -> None:
    done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DyncompileError(
            f"{' '.join(command)} failed: {done.stderr.strip() or 'no message'}", fix=_by_hand(folder)
        )


def _by_hand(folder: Path) -> str:
    return (
        f"run `apt-get update` and try again, install {PACKAGE}, or put the four idx .gz files of "
        f"Fashion-MNIST into {folder} (their SHA-256 are checked)"
    )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"
