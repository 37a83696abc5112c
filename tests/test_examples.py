"""The examples run, shortened where they train."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dyncompile.errors import DyncompileWarning


def test_width_slicing(capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module("examples.width_slicing").main()
    assert "width 0.25" in capsys.readouterr().out


def test_home_made(capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module("examples.home_made").main()
    assert "reduced bit for bit: True" in capsys.readouterr().out


def test_timm_model(capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module("examples.timm_model").main()
    printed = capsys.readouterr().out
    assert "equal at full: True" in printed
    assert "of the MACs" in printed


def test_torchvision_model(capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module("examples.torchvision_model").main()
    printed = capsys.readouterr().out
    assert printed.count("agrees: True") == 4


def test_huggingface_trainer(capsys: pytest.CaptureFixture[str]) -> None:
    whole, smallest = importlib.import_module("examples.huggingface_trainer").main()
    assert whole < 0.69
    assert smallest < 0.69
    assert "at the smallest width" in capsys.readouterr().out


@pytest.mark.skipif(importlib.util.find_spec("lightning") is None, reason="lightning is not installed")
def test_lightning_module(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():  # of Lightning's, about workers and intervals of logging
        warnings.simplefilter("ignore")
        assert importlib.import_module("examples.lightning_module").main() > 0.6
    assert "right at the smallest width" in capsys.readouterr().out


def test_segmentation(capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module("examples.segmentation").main()
    printed = capsys.readouterr().out
    assert "equal at full: True" in printed
    assert "[2, 3, 64, 64]" in printed


@pytest.mark.parametrize(
    ("name", "points"),
    [
        ("dsnet", 5),
        ("exits", 5),
        pytest.param("lcnet", 2, marks=pytest.mark.zoo),
        pytest.param("routing", 3, marks=pytest.mark.zoo),
        pytest.param("resolution", 4, marks=pytest.mark.zoo),
        pytest.param("basisnet", 3, marks=pytest.mark.zoo),
    ],
)
def test_pictures(name: str, points: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A point per policy, the learned one among them, and twelve digits with what they cost."""
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DyncompileWarning)
        importlib.import_module(f"examples.{name}").main(epochs=1)
    root = ElementTree.parse(tmp_path / "out" / "examples" / f"{name}.svg").getroot()
    found = {
        kind: list(root.iter(f"{{http://www.w3.org/2000/svg}}{kind}")) for kind in ("circle", "image", "text")
    }
    assert len(found["circle"]) == points
    assert len(found["image"]) == 12
    texts = [text.text or "" for text in found["text"]]
    assert sum(text.startswith("learned: ") for text in texts) == 1
    costs = [int(text.removesuffix("%")) for text in texts if text.removesuffix("%").isdigit()]
    assert len(costs) == 12
    assert costs[:6] == sorted(costs[:6])
    assert costs[5] <= costs[11]


def test_examples_are_short() -> None:
    """Under 60 lines each."""
    folder = Path(__file__).resolve().parent.parent / "examples"
    long = [path.name for path in folder.glob("*.py") if len(path.read_text().splitlines()) >= 60]
    assert long == []
