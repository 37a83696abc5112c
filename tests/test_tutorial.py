"""The tutorial's commands parse; the long sweep runs them all as they are written."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from dyncompile.cli import app
from dyncompile.spec import parse_specs

FOLDER = Path(__file__).resolve().parent.parent
TUTORIAL = (FOLDER / "docs" / "tutorial.md").read_text()


def commands() -> list[list[str]]:
    blocks = re.findall(r"```console\n(.*?)```", TUTORIAL, re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def test_commands_and_options_exist() -> None:
    known = get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    for command, *words in (words[1:] for words in commands() if words[0] == "dyncompile"):
        name, given = (words[1], words[2:]) if command == "--config" else (command, words)
        flags = {flag for parameter in known[name].params for flag in parameter.opts}
        assert {word for word in given if word.startswith("-")} <= flags
        for option, value in itertools.pairwise(given):
            if option in ("-m", "--method"):
                assert parse_specs(value, {})


@pytest.mark.zoo
def test_it_runs_as_written(tmp_path: Path) -> None:
    for language, name, content in re.findall(r"```(python|toml)\n# (\S+)\n(.*?)```", TUTORIAL, re.DOTALL):
        assert name.endswith({"python": ".py", "toml": ".toml"}[language])
        (tmp_path / name).write_text(content)
    paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = {**os.environ, "PATH": os.pathsep.join(paths), "PYTHONPATH": str(FOLDER)}
    for words in commands():
        if words[0] == "pip":
            continue
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
    written = {path.name for path in tmp_path.iterdir()}
    assert {"dynamic", "trained", "report.html", "narrow.pt2", "half.onnx"} <= written
