"""What is shipped, and who may import whom."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = {"timm", "torchvision", "transformers", "sklearn", "onnx"}


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter, where nothing has been imported yet."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def sources(folder: str) -> list[Path]:
    return [path for path in (ROOT / folder).rglob("*.py") if "dyncompile/passes" not in path.as_posix()]


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, nested imports included; `from a import b` counts as `a.b`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from (f"{base}.{alias.name}" for alias in node.names)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names in a wheel that is built from a copy of the tree to which a new pass was added."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("dyncompile", "passes"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    (tree / "passes" / "brand_new.py").write_text('"""A pass that no list names."""\n')
    command = [sys.executable, "-m", "pip", "wheel", ".", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", "out"], cwd=tree, check=True, capture_output=True)
    (built,) = (tree / "out").glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return set(archive.namelist())


def test_wheel_holds_every_pass(wheel: set[str]) -> None:
    passes = {f"dyncompile/passes/{p.relative_to(ROOT / 'passes')}" for p in sources("passes")}
    assert passes | {"dyncompile/passes/brand_new.py"} <= wheel


def test_wheel_holds_the_core_and_nothing_else(wheel: set[str]) -> None:
    core = {p.relative_to(ROOT).as_posix() for p in sources("dyncompile")}
    assert core | {"dyncompile/py.typed"} <= wheel
    assert {name.partition("/")[0] for name in wheel} == {"dyncompile", "dyncompile-0.1.0.dist-info"}


def test_passes_is_a_relative_symlink() -> None:
    assert os.readlink(ROOT / "dyncompile" / "passes") == "../passes"


def test_passes_have_one_name_only() -> None:
    done = python("import passes")
    assert done.returncode != 0
    assert "dyncompile.passes" in done.stderr


def test_import_loads_no_pass_and_no_extra() -> None:
    done = python("import dyncompile, dyncompile.zoo, sys; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert EXTRAS.isdisjoint(loaded)
    assert [name for name in loaded if name.startswith("dyncompile.passes.")] == []


def test_passes_never_import_each_other() -> None:
    """Lint sees this, and that the core imports no pass, but for passes that are folders."""
    offenders = [
        (path.name, name)
        for path in sources("passes")
        for name in imported(path)
        if name.startswith(("dyncompile.passes.", ".", "passes."))
        and not name.startswith(f"dyncompile.passes.{own_name(path)}.")
    ]
    assert offenders == []


def own_name(path: Path) -> str:
    """A pass is a file or a folder of `passes/`; the files of a folder belong together."""
    return path.relative_to(ROOT / "passes").parts[0].removesuffix(".py")
