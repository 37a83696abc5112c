"""Every command from end to end: a `.pth` becomes a trained model, a static file and a report."""

from __future__ import annotations

import base64
import importlib
import io
import json
import logging
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dyncompile as dc
from dyncompile.cli.data import Pixels, load_data, pixels
from dyncompile.deploy.exports.formats import errors_only
from dyncompile.errors import DyncompileWarning
from dyncompile.report.sections import percent
from tests.test_cli import NET, failed, run
from tests.tiny import conv_net

SETS = "tests.cli_data:sets"
SHORT = ("--set", "supernet_epochs=1", "--set", "gate_epochs=1", "--set", "target=0.8", "--batch-size", "16")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What convert writes."""
    folder = tmp_path_factory.mktemp("cli")
    torch.manual_seed(5)
    torch.save(conv_net()[0].state_dict(), folder / "net.pth")
    done = run("convert", folder / "net.pth", "--arch", NET, "-m", "dsnet(divisor=1)", "-o", folder / "out")
    assert done.exit_code == 0, done.output
    return folder / "out"


@pytest.fixture(scope="module")
def trained(out: Path) -> Path:
    """What train writes."""
    target = out.with_name("trained")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DyncompileWarning)
        done = run("train", out, "--data", SETS, "-o", target, *SHORT, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["recipe"] == "dsnet"
    assert found["steps"] == 6
    return target


def told(*words: str | Path) -> Any:
    """What a command prints as JSON."""
    done = run(*words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


# -- train and eval ---------------------------------------------------------------------------------


def test_training_moves_weights_and_can_be_resumed(out: Path, trained: Path) -> None:
    before, after = dc.load(out), dc.load(trained)
    assert after.history == before.history
    assert not torch.equal(before.state_dict()["0.0.weight"], after.state_dict()["0.0.weight"])
    written = (trained / "training" / "history.json").read_bytes()
    again = run("train", out, "--data", SETS, "-o", trained, *SHORT)
    assert again.exit_code == 0, again.output
    found = re.search(r"calibrated: .* before, ([\d.]+) % now, target 80.0 %", again.stdout)
    assert found is not None
    assert float(found[1]) == pytest.approx(100 * _calibration(trained)["reached"], abs=0.06)
    assert f"validation after the last epoch: metric {_validated(trained):.4g}, " in again.stdout
    assert f"dyncompile eval {trained} --data {SETS}" in again.stdout
    assert (trained / "training" / "history.json").read_bytes() == written
    assert torch.equal(dc.load(trained).state_dict()["0.0.weight"], after.state_dict()["0.0.weight"])


def _calibration(trained: Path) -> dict[str, Any]:
    return json.loads((trained / "training" / "history.json").read_text())["calibration"]


def _validated(trained: Path) -> float:
    epochs = json.loads((trained / "training" / "history.json").read_text())["epochs"]
    return epochs[-1]["validation"]["metric"]


def test_evaluation_is_what_the_model_does(trained: Path) -> None:
    from tests.cli_data import sets

    images, labels = sets()[1][:]
    dyn = dc.load(trained)
    with torch.no_grad():
        output, route = dyn.run(images, policy=dc.Learned())
    found = told("eval", trained, "--data", SETS)
    assert found["samples"] == 16
    assert found["accuracy"] == pytest.approx(float((output.argmax(1) == labels).float().mean()))
    spent = (float(dyn.macs(route).mean()) + dyn.decision_macs) / dyn.static_macs
    assert found["macs"] == pytest.approx(spent)
    use = route["width"].mean(0)
    assert list(found["use"]["width"].values()) == pytest.approx(use.tolist())
    assert told("eval", trained, "--data", SETS, "--policy", "full")["macs"] == 1
    assert "accuracy" in run("eval", trained, "--data", "tests.cli_data:alone").stdout


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        (
            ["train", "OUT", "--data", SETS, "-o", "x", "--recipe", "dsnett"],
            "SpecError",
            "did you mean 'dsnet'",
        ),
        (
            ["train", "OUT", "--data", SETS, "-o", "x", "--set", "targt=1"],
            "SpecError",
            "did you mean 'target'",
        ),
        (["train", "OUT", "--data", SETS, "-o", "x", "--set", "target"], "SpecError", "KEY=VALUE"),
        (
            ["train", "OUT", "--data", SETS, "-o", "x", "--set", "supernet_epochs=1.5"],
            "SpecError",
            "'supernet_epochs' takes int, got 1.5",
        ),
        (
            ["train", "OUT", "--data", SETS, "-o", "x", "--set", "schedule=cosine"],
            "SpecError",
            "'schedule' takes Schedule | None, which no word can say, got 'cosine'",
        ),
        (
            ["train", "OUT", "--data", SETS, "-o", "x", "--set", "base=adamw"],
            "SpecError",
            "words can set: target, supernet_epochs, ",
        ),
        (["train", "OUT", "--data", "nowhere", "-o", "x"], "SpecError", "neither a folder nor a function"),
        (["eval", "OUT", "--data", SETS, "--policy", "best"], "SpecError", "learned"),
        (["eval", "nowhere", "--data", SETS], "CheckpointError", "program.json is missing"),
        (["specialize", "OUT", "-o", "x.pt2", "-r", "widht=0.5"], "RouteError", "did you mean 'width'"),
        (["specialize", "OUT", "-o", "x.pt2", "-r", "width=0.6"], "RouteError", "smallest, 0.25, 0.5"),
        (["export", "OUT", "-o", "x.txt"], "SpecError", "end it in .onnx or .pt2"),
        (["export", "OUT", "-o", "x.onnx", "--format", "xml"], "SpecError", "choose onnx or pt2 or bundle"),
        (
            ["export", "OUT", "-o", "x", "--format", "bundle", "--smallest"],
            "SpecError",
            "a bundle holds the static networks of all routes",
        ),
        (
            ["specialize", "OUT", "-o", "x.onnx", "--smallest"],
            "SpecError",
            "dyncompile export with --smallest or --route writes .onnx",
        ),
        (["inspect", "nowhere"], "CheckpointError", "program.json is missing"),
        (["report", "nowhere"], "CheckpointError", "program.json is missing"),
        (["bench", "nowhere"], "CheckpointError", "program.json is missing"),
        (["bench", "OUT", "--plot", "nodir/x.svg"], "InputError", "create nodir, or name another"),
        (["report", "OUT", "-o", "nodir/x.html"], "InputError", "create nodir, or name another"),
    ],
)
def test_what_users_get_wrong(
    words: list[str], kind: str, said: str, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for work in ("measuring.timed", "results.build_report", "deployment.specialized"):
        monkeypatch.setattr(f"dyncompile.cli.{work}", lambda *_, **__: pytest.fail("it was refused too late"))
    assert said in failed(run(*(str(out) if word == "OUT" else word for word in words)), 2, kind)
    assert list(tmp_path.iterdir()) == []


# -- specialize, export, bench ----------------------------------------------------------------------


@pytest.mark.parametrize("command", ["specialize", "export"])
def test_a_route_becomes_a_file(command: str, trained: Path, tmp_path: Path) -> None:
    found = told(command, trained, "--route", "width=0.5", "-o", tmp_path / "half.pt2")
    dyn, x = dc.load(trained), torch.randn(5, 3, 8, 8)
    route = dyn.route({"width": 1})
    assert found["macs"] == float(dyn.macs(route)[0])
    with torch.no_grad():
        loaded = torch.export.load(tmp_path / "half.pt2").module()
        assert torch.allclose(loaded(x), dyn.run(x, policy=dc.Forced(dyn.route(1, 5)))[0], atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["half.pt2"]


def test_the_dynamic_model_is_exported_where_no_route_is_given(trained: Path, tmp_path: Path) -> None:
    assert told("export", trained, "-o", tmp_path / "dynamic.pt2")["difference"] < 1e-5
    dyn, x = dc.load(trained), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        output, route = torch.export.load(tmp_path / "dynamic.pt2").module()(x)
        expected, taken = dyn.run(x, policy=dc.Learned())
    assert torch.allclose(output, expected, atol=1e-5)
    assert torch.equal(route["width"], taken["width"])


def test_remarks_of_exporters_stay_off_the_terminal(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("onnx_ir.passes")
    with errors_only("onnx_ir"):
        logger.warning("skipped")
        logger.error("broken")
    logger.warning("later")
    assert caplog.messages == ["broken", "later"]


def test_onnx_runs_in_onnx_runtime(trained: Path, tmp_path: Path) -> None:
    assert told("export", trained, "--smallest", "-o", tmp_path / "narrow.onnx")["difference"] < 1e-5
    session: Any = importlib.import_module("onnxruntime").InferenceSession(tmp_path / "narrow.onnx")
    dyn, x = dc.load(trained), torch.randn(5, 3, 8, 8)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        expected, _ = dyn.run(x, policy=dc.Smallest())
    assert torch.allclose(torch.as_tensor(found), expected, atol=1e-5)


def test_bench_times_every_route_against_the_source(trained: Path, tmp_path: Path) -> None:
    short, plot = ("--pairs", "1", "--batch-size", "2"), tmp_path / "time.svg"
    rows = {row["name"]: row for row in told("bench", trained, *short, "--data", SETS, "--plot", plot)}
    assert {"source", "dynamic at full", "dynamic at smallest", "static 0.25", "static 1"} <= set(rows)
    assert rows["dynamic at full"]["share"] == 1
    assert rows["static 0.25"]["share"] < rows["learned routes"]["share"]
    assert plot.read_text().startswith("<svg xmlns=")
    assert rows["static 0.25"]["share"] < rows["static 0.5"]["share"] < 1
    assert all(row["latency"]["wall"]["median"] > 0 for row in rows.values())
    table = run("bench", trained, "--pairs", "1", "--source", NET, "--deployed").stdout
    assert "time relative to the source" in table
    assert "learned" not in table


def test_profile_shows_both_currencies(
    trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DYNCOMPILE_CACHE", str(tmp_path))
    found = told("profile", trained, "--rounds", "1")
    assert [row["label"] for row in found["rows"]] == ["0.25", "0.5", "0.75", "1"]
    assert [row["macs"] for row in found["rows"]] == sorted(row["macs"] for row in found["rows"])
    assert (found["batch"], found["threads"], found["clock"]) == (1, 1, "wall")
    assert found["rows"][3]["time"] == found["full"] > 0
    text = run("profile", NET, "-m", "dsnet(divisor=1)", "--rounds", "1").stdout
    assert re.search(r"choice +setting +MACs +time +realized", text)
    assert len(list((tmp_path / "latency").iterdir())) == 1  # the same graph is measured once


# -- report and inspect -----------------------------------------------------------------------------


def test_report_is_one_page_without_links(trained: Path, tmp_path: Path) -> None:
    done = run("report", trained, "--data", SETS, "-o", tmp_path / "r.html")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "r.html").read_text()
    found = told("eval", trained, "--data", SETS)
    numbers = [percent(found[name]) for name in ("macs", "accuracy")]
    assert "<td>learned</td>" + "".join(f"<td class='number'>{n}</td>" for n in numbers) in page
    assert f"<b>{numbers[1]}</b>" in page
    assert page.count("class='point fixed'") == 4
    assert page.count("class='point gated'") == 1
    assert page.count("class='diamond asked width'") == 1
    assert "Accuracy against MACs" in page
    assert "supernet" in page
    assert not re.search(r"href\s*=\s*'?[^'#]|https?://|<script|@import|url\(", page)
    assert page.count("<span class='right'>") + page.count("<span class='wrong'>") == 12
    pictures = re.findall(r"src='([^']*)'", page)
    assert len(pictures) == 12
    shown = [decoded(uri) for uri in pictures]
    assert all(image.size == (8, 8) and image.mode == "RGB" for image in shown)
    shares = [float(text) for text in re.findall(r"<figure>.*?<b>([\d.]+) %</b>", page)]
    assert shares[:6] == sorted(shares[:6])
    assert shares[6:] == sorted(shares[6:], reverse=True)
    assert max(shares[:6]) <= min(shares[6:])
    assert run("report", trained).exit_code == 0
    alone = (trained / "report.html").read_text()
    assert "class='diamond asked width'" in alone
    assert "class='point" not in alone
    assert str(trained / "none" / "r.html") in failed(
        run("report", trained, "-o", trained / "none" / "r.html"), 2, "InputError"
    )


def decoded(uri: str) -> Image.Image:
    """The picture of a data URI; raises where it is none."""
    image = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))
    image.load()
    return image


def test_pictures_keep_their_pixels() -> None:
    from dyncompile.report.samples import data_uri

    image = torch.rand(3, 4, 5)
    image[0, 0, 0], image[1, 2, 3] = 0, 1
    pixels = torch.as_tensor(np.array(decoded(data_uri(image)))).permute(2, 0, 1)
    assert torch.equal(pixels, (image * 255).byte())


def test_inspect_reads_files_alone(trained: Path) -> None:
    found = told("inspect", trained)
    dyn = dc.load(trained)
    assert found["passes"] == list(dyn.history)
    assert found["loads_without_source"]
    assert found["numbers"]["source"] == sum(t.numel() for t in dc.reduce_to_source(dyn).values())
    assert sum(found["numbers"].values()) == sum(t.numel() for t in dyn.state_dict().values())
    said = run("inspect", trained).stdout
    assert "inputs    input [B, 3, 8, 8] float32\n" in said
    assert "loads without the source's code: yes" in said


# -- configuration, completion, images --------------------------------------------------------------


def test_configuration_mirrors_the_flags(trained: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(f'[eval]\ndata = "{SETS}"\npolicy = "full"\nbatch-size = 4\njson = true\n')
    done = run("--config", config, "eval", trained)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["macs"] == 1
    done = run("--config", config, "eval", trained, "--policy", "smallest")
    assert json.loads(done.stdout)["macs"] < 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[evl]\n", "did you mean 'eval'"),
        ("[eval]\npolici = 1\n", "did you mean 'policy'"),
        ("eval = 3\n", "no command"),
        ("[eval\n", "cannot be read"),
    ],
)
def test_bad_configurations(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(text)
    assert said in failed(run("--config", tmp_path / "run.toml", "eval", "x"), 2, "SpecError")


def test_shells_can_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")  # no shell runs the tests
    done = run("--show-completion", "bash")
    assert done.exit_code == 0, done.output
    assert "_DYNCOMPILE_COMPLETE" in done.stdout.upper()


def test_folders_of_images(out: Path, tmp_path: Path) -> None:
    dyn = dc.load(out)
    for label, color in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
        (tmp_path / label).mkdir()
        for i in range(6):
            Image.new("RGB", (20, 12), color).save(tmp_path / label / f"{i}.png")
    sets = load_data(str(tmp_path), dyn)
    assert (len(sets.train), len(sets.validation)) == (10, 2)
    image, label = sets.train[9]
    assert label == 1
    assert torch.equal(image, torch.tensor([1.0, -1, -1])[:, None, None].expand(3, 8, 8))
    assert told("eval", out, "--data", tmp_path)["samples"] == 2
    (tmp_path / "red" / "0.png").write_bytes(b"no image")
    message = failed(run("eval", out, "--data", tmp_path, "--part", "train"), 2, "InputError")
    assert "cannot be read" in message or "samples" in message


def test_pixels_are_scaled_as_the_source_was_trained() -> None:
    found = pixels(None, None, "timm:resnet18?num_classes=10")
    assert found == pixels("0.485,0.456,0.406", "0.229,0.224,0.225", None)
    assert pixels(None, None, "timm:vit_tiny_patch16_224").mean == (0.5, 0.5, 0.5)
    assert pixels(None, None, "torchvision:resnet18") == found
    assert pixels(None, "0.25", NET) == Pixels((0.5,), (0.25,))
    mean, deviation = found.of(3)
    assert mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert deviation.shape == (3, 1, 1)
    assert float(found.of(1)[0]) == pytest.approx(1.347 / 3)


@pytest.mark.parametrize(
    ("mean", "deviation", "said"),
    [
        ("a", None, "is no number"),
        ("1,2", None, "2 numbers were given for 3 channels"),
        (None, "0", "above 0"),
    ],
)
def test_bad_scales(mean: str | None, deviation: str | None, said: str) -> None:
    with pytest.raises(dc.SpecError, match=said):
        pixels(mean, deviation, None).of(3)


def test_a_folder_without_images(out: Path, tmp_path: Path) -> None:
    assert "no image" in failed(run("eval", out, "--data", tmp_path), 2, "InputError")


# -- several image sizes, without the source --------------------------------------------------------


@pytest.fixture(scope="module")
def sized(out: Path) -> Path:
    """What convert writes of a network at three image sizes."""
    target, spec = out.with_name("sized"), "resolution(sizes=(4, 6), predictor=linear)"
    done = run("convert", out.with_name("net.pth"), "--arch", NET, "-m", spec, "-o", target)
    assert done.exit_code == 0, done.output
    return target


@pytest.fixture
def no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever builds the source or captures it fails."""
    for name in ("checkpoint.capture", "capture.again.captured", "zoo.load"):
        monkeypatch.setattr(f"dyncompile.{name}", lambda *_, **__: pytest.fail("the source is not at hand"))


@pytest.mark.usefixtures("no_code")
def test_commands_need_no_code_for_other_image_sizes(sized: Path, tmp_path: Path) -> None:
    assert told("inspect", sized)["sizes"] == [[4, 4], [6, 6]]
    assert "source's code: yes, from its graph, and those at 4, 6\n" in run("inspect", sized).stdout
    dyn, x = dc.load(sized), torch.randn(3, 3, 8, 8)
    for column, size in enumerate((4, 6, 8)):
        file = tmp_path / f"{size}.pt2"
        found = told("specialize", sized, "-r", f"resolution={size}", "-o", file)
        assert found["macs"] == float(dyn.macs(dyn.route(column))[0])
        with torch.no_grad():
            expected = dyn.run(x, policy=dc.Forced(dyn.route(column, 3)))[0]
            assert torch.allclose(torch.export.load(file).module()(x), expected, atol=1e-5)
    assert told("eval", sized, "--data", SETS, "--policy", "smallest")["use"]["resolution"]["4"] == 1
    assert told("export", sized, "-o", tmp_path / "dynamic.pt2")["difference"] < 1e-5
    assert told("bench", sized, "--batch-size", "2", "--pairs", "3")
    short = ("--set", "pretrain_epochs=1", "--set", "joint_epochs=1", "--set", "target=0.9")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DyncompileWarning)
        done = run("train", sized, "--data", SETS, "-o", tmp_path / "trained", "--json", *short)
    assert done.exit_code == 0, done.output
    assert told("inspect", tmp_path / "trained")["loads_without_source"]


@pytest.mark.usefixtures("no_code")
def test_inspect_tells_what_earlier_releases_did_not_keep(sized: Path, tmp_path: Path) -> None:
    for path in sized.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    program = json.loads((sized / "program.json").read_text())
    del program["sizes"]
    (tmp_path / "program.json").write_text(json.dumps(program))
    assert not told("inspect", tmp_path)["loads_without_source"]
    assert "source's code: no: an earlier release wrote it" in run("inspect", tmp_path).stdout
