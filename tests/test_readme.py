"""What the README shows works."""

from __future__ import annotations

import itertools
import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import dyncompile as dc
from dyncompile.cli import app
from dyncompile.errors import DyncompileWarning
from dyncompile.spec import parse_specs
from dyncompile.zoo import ModelSpec

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_example_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _ = blocks("python")
    with warnings.catch_warnings():  # labels at random: there is nothing that a gate could tell apart
        warnings.simplefilter("ignore", DyncompileWarning)
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2] == "True"
    assert re.fullmatch(r"1,680,928 of 4,390,912 MACs", printed[-1])
    assert list(tmp_path.iterdir()) == []


def test_example_of_inference_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    images = torch.randn(8, 3, 8, 8)
    dyn = dc.dynamize(
        nn.Sequential(net, nn.Linear(8, 4)), "dsnet(ratios=(0.5, 1.0), divisor=1, minimum=1)", images
    )
    dyn.eval()
    _, code = blocks("python")
    exec(compile(code, "README.md", "exec"), {"dc": dc, "dyn": dyn})
    assert {path.name for path in tmp_path.iterdir()} == {"dynamic.onnx", "narrow.onnx"}


def test_example_is_short() -> None:
    code, _ = blocks("python")
    assert len([line for line in code.splitlines() if line and not line.startswith(("import", "from"))]) <= 10


def test_commands_exist_and_their_specs_parse() -> None:
    lines = [line.split() for block in blocks("console") for line in block.splitlines() if line]
    commands = [line for line in lines if line[0] == "dyncompile"]
    assert {line[1] for line in commands} == {
        "demo",
        "explain",
        "verify",
        "convert",
        "train",
        "eval",
        "report",
        "export",
    }
    for line in commands:
        assert CliRunner().invoke(app, [line[1], "--help"]).exit_code == 0
        for option, value in itertools.pairwise(line):
            if option == "--method":
                assert parse_specs(value.strip('"'), {})
            if option in ("--arch", "explain", "verify"):
                assert ModelSpec.parse(value)


def test_make_targets_exist() -> None:
    makefile = (Path(__file__).resolve().parent.parent / "Makefile").read_text()
    targets = set(re.findall(r"make (\w+)", README))
    assert {"demo", "test"} <= targets
    assert all(f"\n{target}:" in makefile for target in targets)
