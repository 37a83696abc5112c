"""The command line: results, exit codes, and errors that say what to do."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.main import get_command
from typer.testing import CliRunner, Result

import dyncompile as dc
from dyncompile.cli import app
from dyncompile.cli.output import errors_as_panels
from dyncompile.train.diagnostics import CollapseWarning
from dyncompile.verify import Check
from tests.tiny import conv_net

NET = "tests.tiny:conv_net"


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def failed(done: Result, code: int, kind: str) -> str:
    """The message of a run that failed as it should: a panel on stderr, no traceback, nothing on stdout."""
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    assert f"─ {kind} ─" in done.stderr
    assert done.stdout == ""
    return "\n".join(line.strip("│ ") for line in done.stderr.splitlines())


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(5)
    return conv_net()[0].state_dict()


@pytest.fixture(scope="module")
def weights(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    return path


# -- help -------------------------------------------------------------------------------------------


COMMANDS: Any = get_command(app)


@pytest.mark.parametrize("command", list(COMMANDS.commands))
def test_help_has_examples(command: str) -> None:
    done = run(command, "--help")
    assert done.exit_code == 0
    assert "Examples:" in done.stdout
    assert f"dyncompile {command}" in done.stdout.replace("dyncompile --config run.toml", "dyncompile")


@pytest.mark.parametrize("command", list(COMMANDS.commands))
def test_results_are_to_be_had_as_data(command: str) -> None:
    """All but `demo`, which has a file of its own for them."""
    flags = {flag for parameter in COMMANDS.commands[command].params for flag in parameter.opts}
    assert ("--json" in flags) != (command == "demo")


def test_version() -> None:
    assert run("--version").stdout == f"dyncompile {dc.__version__}\n"


# -- explain and verify -----------------------------------------------------------------------------


def test_explain_prints_the_text() -> None:
    torch.manual_seed(0)
    model, example = conv_net(32)
    done = run("explain", f"{NET}?width=32", "--method", "dsnet(per=dim, gate=False)")
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == dc.dynamize(model, "dsnet(per=dim, gate=False)", example).explain()


def test_explain_as_json_composes_methods() -> None:
    narrow, wide = "dsnet(gate=False, include='^0')", "dsnet(gate=False, exclude='^0', name=rest)"
    done = run("explain", NET, "-m", narrow, "-m", wide, "--json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    assert [choice["name"] for choice in found["choices"]] == ["width", "rest"]
    assert [done["sites"] for done in found["passes"]] == [1, 1]


def test_verify_prints_every_invariant() -> None:
    done = run("verify", NET)
    assert done.exit_code == 0, done.output
    rows = [line for line in done.stdout.splitlines() if line.startswith("ok ")]
    assert rows == done.stdout.splitlines()
    assert any("full capacity, train" in row for row in rows)


def test_terminals_get_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    report = dc.Report((Check("equality", True, 0.25, "of everything"),))
    monkeypatch.setattr("dyncompile.cli.commands.check_contract", lambda *given: report)
    shown, checked = run("explain", NET), run("verify", NET)
    assert shown.exit_code == checked.exit_code == 0
    assert "decided by a choice" in shown.stdout
    header, row = checked.stdout.splitlines()
    assert header.split() == ["invariant", "max", "abs", "diff", "detail"]
    assert row.split() == ["ok", "equality", "0.25", "of", "everything"]


def test_verify_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    report = dc.Report(())
    monkeypatch.setattr("dyncompile.cli.commands.check_contract", lambda *given: report)
    assert json.loads(run("verify", NET, "--json").stdout) == {"passed": True, "checks": []}


@pytest.mark.parametrize("as_json", [False, True])
def test_broken_contract_exits_with_1(as_json: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: object) -> NoReturn:
        raise dc.ContractError("output differs at full capacity")

    monkeypatch.setattr("dyncompile.cli.commands.check_contract", broken)
    done = run("verify", NET, *(["--json"] if as_json else []))
    assert done.exit_code == 1
    assert "─ ContractError ─" in done.stderr
    assert "Traceback" not in done.stderr
    if as_json:
        expected = {"passed": False, "problem": "output differs at full capacity", "checks": []}
        assert json.loads(done.stdout) == expected


# -- what a user can get wrong ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("dsnett", ["'dsnett'", "did you mean 'dsnet'?"]),
        ("drnet", ["routing:", "resolution:"]),
        (
            "dsnet(ratio=0.5)",
            ["no field 'ratio'", "did you mean 'ratios'?", "column 7", "dsnet(ratio=0.5)", "^"],
        ),
        ("dsnet(ratios=(0.5, 1.5))", ["(0, 1]", "1.5"]),
        ("dsnet(ratios=", ["cannot read the spec"]),
    ],
)
def test_bad_methods(spec: str, said: list[str]) -> None:
    message = failed(run("explain", NET, "--method", spec), 2, "SpecError")
    assert [text for text in said if text not in message] == []


def test_position_points_at_the_field() -> None:
    lines = run("explain", NET, "--method", "dsnet(per=dim, ratio=1)").stderr.splitlines()
    (spec,) = (line for line in lines if "dsnet(per=dim, ratio=1)" in line)
    assert lines[lines.index(spec) + 1].index("^") == spec.index("ratio")


@pytest.mark.parametrize(
    ("model", "kind", "said"),
    [
        ("tests.tiny:conv_nets", "SpecError", "conv_net"),
        ("no_such_module:f", "SpecError", "no_such_module"),
        ("resnet18", "SpecError", "timm:NAME"),
        ("tests.handmade:no_parameters", "CaptureError", "no parameters"),
        ("tests.handmade:control_flow", "CaptureError", "branches on the values"),
    ],
)
def test_bad_models(model: str, kind: str, said: str) -> None:
    assert said in failed(run("explain", model), 2, kind)


def test_nothing_to_act_on_lists_the_reasons() -> None:
    message = failed(run("explain", NET, "--method", "dsnet(include='^nothing')"), 2, "NoSiteError")
    assert "0.0.weight[0]: not included by '^nothing'" in message


def test_bug_in_the_users_function_keeps_its_traceback() -> None:
    done = run("explain", "tests.tiny:buggy")
    assert isinstance(done.exception, ZeroDivisionError)


def test_module_in_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lying_here.py").write_text("def empty():\n    return 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in os.sys.path if path not in ("", os.getcwd())])  # pyright: ignore
    assert "returned a int" in failed(run("explain", "lying_here:empty"), 2, "SpecError")


def test_warnings_of_the_library_are_remarks(capsys: pytest.CaptureFixture[str]) -> None:
    with errors_as_panels():
        warnings.simplefilter("always")
        warnings.warn("the gates have collapsed", CollapseWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: the gates have collapsed\n"


# -- convert ----------------------------------------------------------------------------------------


def test_convert_writes_what_load_reads(weights: Path, state: dict[str, Tensor], tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    done = run("convert", weights, "--arch", NET, "--method", "dsnet(gate=False, minimum=4)", "-o", target)
    assert done.exit_code == 0, done.output
    loaded = dc.load(target, source=conv_net()[0])
    assert loaded.history == ("dsnet(gate=False, minimum=4)",)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in state.items())
    assert json.loads((target / "program.json").read_text())["source"] == NET
    assert [path.name for path in target.parent.iterdir()] == ["b"]
    said = done.stdout.replace("\n", "")
    assert f"dyncompile train {target}" in said
    assert f'dyncompile.load("{target}")' in said


def test_convert_says_what_it_proved(
    weights: Path, state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = dc.Report((Check("equality", True, 0.0, "bit for bit"),))
    monkeypatch.setattr("dyncompile.cli.convert.verify", lambda *given: report)
    done = run("convert", weights, "--arch", NET, "-o", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["passed"], found["source"], found["passes"]) == (True, NET, ["dsnet"])
    assert found["checks"] == [
        {"name": "equality", "passed": True, "difference": 0.0, "detail": "bit for bit"}
    ]
    assert found["tensors"] == len(state)
    assert 0 < found["smallest_share"] < 1


def test_convert_replaces_an_earlier_result(
    weights: Path, state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dyncompile.cli.convert.verify", lambda *given: dc.Report(()))
    other = {name: value + 1 for name, value in state.items()}
    save_file(other, tmp_path / "other.safetensors")
    for file in (weights, tmp_path / "other.safetensors"):
        done = run("convert", file, "--arch", NET, "-o", tmp_path / "out")
        assert done.exit_code == 0, done.output
    loaded = dc.load(tmp_path / "out", source=conv_net()[0])
    assert torch.equal(loaded.state_dict()["0.0.weight"], other["0.0.weight"])


def test_convert_writes_nothing_when_the_contract_breaks(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object) -> NoReturn:
        raise dc.ContractError("output differs at full capacity")

    monkeypatch.setattr("dyncompile.cli.convert.verify", broken)
    failed(run("convert", weights, "--arch", NET, "-o", tmp_path / "out"), 1, "ContractError")
    assert list(tmp_path.iterdir()) == []


def test_convert_explains_mismatches_and_writes_nothing(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({name.replace("0.0.", "stem."): value for name, value in state.items()}, tmp_path / "w.pt")
    done = run("convert", tmp_path / "w.pt", "--arch", NET, "-o", tmp_path / "out")
    assert "missing: 0.0.weight (the file has stem.weight)" in failed(done, 2, "CheckpointError")
    assert not (tmp_path / "out").exists()


class Attack:
    """Unpickling this creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


def test_convert_refuses_a_malicious_pickle(tmp_path: Path) -> None:
    torch.save({"x": Attack(tmp_path / "owned")}, tmp_path / "evil.pt")
    done = run("convert", tmp_path / "evil.pt", "--arch", NET, "-o", tmp_path / "out")
    assert "it was not called" in failed(done, 2, "CheckpointError")
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pt"]


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("full", "holds other files: notes.txt"),
        ("file", "is no directory"),
        ("file/below", "cannot be created"),
        ("lookalike", "holds other files: program.json"),
    ],
)
def test_convert_refuses_a_bad_output(out: str, said: str, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, content in (("full/notes.txt", ""), ("lookalike/program.json", "{}")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(content)
    before = sorted(tmp_path.rglob("*"))
    done = run("convert", weights, "--arch", NET, "-o", tmp_path / out)
    assert said in failed(done, 2, "CheckpointError")
    assert sorted(tmp_path.rglob("*")) == before


# -- demo: a whole run is in test_demo.py -----------------------------------------------------------


def test_demo_refuses_bad_settings(tmp_path: Path) -> None:
    assert "epochs" in failed(run("demo", "--epochs", "0"), 2, "SpecError")
    (tmp_path / "file").touch()
    assert "cannot be created" in failed(run("demo", "--out", tmp_path / "file"), 2, "DyncompileError")
