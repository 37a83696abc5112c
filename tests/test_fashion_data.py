"""The benchmark on Fashion-MNIST: its data, the sizes of its networks, its figures. Needs no download."""

from __future__ import annotations

import gzip
import json
import struct
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.fashion import files, protocol
from benchmarks.fashion.baselines import Training, train
from benchmarks.fashion.data import Batches, Data, Split, augment, load, read_idx
from benchmarks.fashion.methods import EFFORTS, METHODS
from benchmarks.fashion.networks import build, count_macs, scale_for
from benchmarks.fashion.plot import SERIES, curves, figure, points
from benchmarks.fashion.summary import at_share
from dyncompile.errors import DyncompileError
from dyncompile.report.charts import WIDTH

PER_CLASS = 1100


def write_idx(path: Path, array: np.ndarray, *, kind: int = 0x08, cut: int = 0) -> Path:
    """An idx .gz file of bytes, possibly with a wrong type or without its last bytes."""
    head = struct.pack(f">BBBB{array.ndim}i", 0, 0, kind, array.ndim, *array.shape)
    content = head + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content[: len(content) - cut]))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the real layout: the pixels of an image spell its number."""
    where = tmp_path_factory.mktemp("fashion")
    for part, count in (("train", 10 * PER_CLASS), ("t10k", 20)):
        images = np.zeros((count, 28, 28))
        images[:, 0, 0], images[:, 0, 1] = np.arange(count) % 256, np.arange(count) // 256
        write_idx(where / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(where / f"{part}-labels-idx1-ubyte.gz", np.arange(count) % 10)
    return where


@pytest.fixture(scope="module")
def data(folder: Path) -> Data:
    return load(folder)


def numbers(split: Split, data: Data) -> set[int]:
    """Which images of the training file a part holds, read back from their pixels."""
    dark = data.train.images.min()
    pixel = (split.images[:, 0, 0, :2] - dark) / (data.train.images[:, 0, 0, 0].max() - dark) * 255
    return {int(a) + 256 * int(b) for a, b in pixel.round().tolist()}


def test_split_is_stratified_disjoint_and_whole(data: Data) -> None:
    assert data.validation.labels.bincount().tolist() == [1000] * 10
    assert data.train.labels.bincount().tolist() == [PER_CLASS - 1000] * 10
    train, validation = numbers(data.train, data), numbers(data.validation, data)
    assert not train & validation
    assert train | validation == set(range(10 * PER_CLASS))


def test_split_is_the_same_every_time(folder: Path, data: Data) -> None:
    assert torch.equal(load(folder).train.images, data.train.images)


def test_only_training_images_set_the_scale(data: Data) -> None:
    assert abs(float(data.train.images.mean())) < 1e-4
    assert abs(float(data.train.images.std()) - 1) < 1e-4
    assert abs(float(data.test.images.mean())) > 1e-3


def test_augmentation_moves_and_mirrors() -> None:
    images = torch.zeros(400, 1, 28, 28)
    images[:, :, 10, 5] = 1.0
    moved = augment(images, torch.Generator().manual_seed(0))
    assert moved.sum((1, 2, 3)).tolist() == [1.0] * 400
    places = {tuple(place) for place in moved[:, 0].nonzero()[:, 1:].tolist()}
    assert places == {(row, column) for row in range(8, 13) for column in (*range(3, 8), *range(20, 25))}


def test_augmentation_fills_with_background() -> None:
    moved = augment(torch.full((50, 1, 28, 28), -0.8), torch.Generator().manual_seed(0))
    assert torch.equal(moved, torch.full_like(moved, -0.8))


def test_an_epoch_follows_its_generator(data: Data) -> None:
    part = data.train.head(70)
    batches = Batches.seeded(part, 32, seed=3)
    first, second = list(batches), list(batches)
    assert [len(labels) for _, labels in first] == [32, 32, 6]
    assert len(batches) == 3
    assert sorted(torch.cat([labels for _, labels in first]).tolist()) == sorted(part.labels.tolist())
    assert not torch.equal(first[0][0], second[0][0])
    batches.generator.manual_seed(3)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, batches, strict=True))


@pytest.mark.parametrize(("kind", "cut"), [(0x0D, 0), (0x08, 1)])
def test_a_header_that_lies_is_an_error(tmp_path: Path, kind: int, cut: int) -> None:
    path = write_idx(tmp_path / "x.gz", np.zeros((2, 3)), kind=kind, cut=cut)
    with pytest.raises(DyncompileError, match=r"x\.gz"):
        read_idx(path)


def test_damaged_files_are_named_all(folder: Path) -> None:
    with pytest.raises(DyncompileError) as caught:
        files.locate(system=folder / "none", local=folder)
    assert all(name in str(caught.value) for name in files.SHA256)


def test_without_apt_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DyncompileError, match=files.PACKAGE) as caught:
        files.fetch(tmp_path / "data")
    assert str(tmp_path / "data") in str(caught.value)
    assert not (tmp_path / "data").exists()


CONVOLUTIONS = 14_112 + 225_792 + (56_448 + 112_896 + 6_272) + (73_728 + 147_456 + 8_192)
"""MACs by hand: stem at 14 x 14, stages at 14, 7 and 4 pixels with their shortcuts."""

LAYERS = 4 * (17 * (4 * 48 * 48 + 2 * 48 * 96) + 2 * 4 * 17 * 17 * 12)
"""MACs by hand: projections and MLP of 17 tokens, then scores and mixtures of 4 heads of width 12."""


@pytest.mark.parametrize(
    ("network", "macs"), [("resnet", CONVOLUTIONS + 320), ("vit", 16 * 49 * 48 + LAYERS + 480)]
)
def test_macs_are_those_counted_by_hand(network: str, macs: int) -> None:
    assert count_macs(build(network)) == macs


@pytest.mark.parametrize("network", ["resnet", "vit"])
@pytest.mark.parametrize("share", [0.3, 0.5, 1.0])
def test_static_baselines_have_the_share_asked_for(network: str, share: float) -> None:
    scaled = build(network, scale_for(network, share))
    assert count_macs(scaled) / count_macs(build(network)) == pytest.approx(share, rel=0.05)


def test_fixed_routes_are_interpolated_at_a_share() -> None:
    fixed = [{"share": share, "accuracy": found} for share, found in ((1.0, 0.9), (0.2, 0.5), (0.6, 0.8))]
    assert at_share(fixed, 0.4) == pytest.approx(0.65)
    assert at_share(fixed, 0.1) == 0.5
    assert at_share(fixed, 1.1) == 0.9


def test_a_figure_is_xml_with_one_mark_per_point_and_series() -> None:
    series: dict[str, list[tuple[float, float]]] = {name: [] for name in SERIES}
    series["learned"] = [(0.5, 0.9), (0.3, 0.8)]
    drawn = ElementTree.fromstring(figure("a title", series))
    circles = len(list(drawn.iter("{http://www.w3.org/2000/svg}circle")))
    assert circles == 2 + 1, "two points, and the one series that has some in the legend"


def test_columns_are_those_of_the_nearest_target_that_they_serve() -> None:
    dsnet = METHODS["dsnet"]
    assert dsnet.spec("resnet", 0.4) == dsnet.spec("resnet", 0.3) != dsnet.spec("resnet", 0.5)
    kept = [dsnet.kept("resnet", target) for target in (0.4, 0.5, 0.9)]
    assert kept == ["dsnet-0.3", "dsnet-0.5", "dsnet-0.5"]
    assert METHODS["lcnet"].kept("resnet", 0.5) == "lcnet"
    with pytest.raises(DyncompileError, match="out of reach"):
        dsnet.spec("resnet", 0.2)


def test_results_of_another_specification_are_not_taken_for_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "RESULTS", tmp_path)
    run = protocol.Run("resnet", "lcnet+exits", 0.5, 0, EFFORTS["resnet"])  # its specification is a tuple
    assert not run.done
    run.result.parent.mkdir()
    now = {"effort": asdict(run.effort), "spec": METHODS["lcnet+exits"].specs["resnet"]}
    for changed, done in (({}, True), ({"spec": ["lcnet()"]}, False), ({"effort": {"base": 1}}, False)):
        run.result.write_text(json.dumps({**now, **changed}))
        assert run.done == done


def test_results_without_a_taught_control_get_it_and_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "RESULTS", tmp_path)
    asked: list[tuple[float, object]] = []

    def baseline(self: protocol.Protocol, share: float, teacher: object = None) -> dict[str, float]:
        asked.append((share, teacher))
        return {"accuracy": 0.5}

    monkeypatch.setattr(protocol.Protocol, "_source", lambda self: "source")
    monkeypatch.setattr(protocol.Protocol, "_baseline", baseline)
    run = protocol.Run("resnet", "lcnet", 0.5, 0, EFFORTS["resnet"])
    run.result.parent.mkdir()
    there = {"effort": asdict(run.effort), "spec": METHODS["lcnet"].specs["resnet"], "machine": "another"}
    run.result.write_text(json.dumps({**there, "dynamic": 0.9}))
    assert run.done
    assert run.lacks_control
    nothing = Split(torch.zeros(0), torch.zeros(0))
    protocol.execute(run, Data(nothing, nothing, nothing))
    found = json.loads(run.result.read_text())
    assert found == {**there, "dynamic": 0.9, "static, taught": {"accuracy": 0.5}}
    assert asked == [(0.5, "source")]
    assert not run.lacks_control


def test_who_is_taught_learns_what_the_teacher_says() -> None:
    torch.manual_seed(0)
    images, labels = torch.rand(64, 1, 4, 4), torch.zeros(64, dtype=torch.int64)
    split = Split(images, labels)
    last = nn.Linear(16, 3)
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.0, 0.0, 20.0]))  # always the last class, labels say the first
    teacher = nn.Sequential(nn.Flatten(), last)
    outputs: list[Tensor] = []
    for known in (None, teacher):
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        asked = Training(epochs=12, rate=0.1, batch=16, seed=0, teacher=known)
        train(net, Data(split, split, split), asked, batches=[(images, labels)] * 4)
        outputs.append(net(images).softmax(1).mean(0))
    alone, taught = outputs
    assert alone[0] > 0.9
    assert taught[[0, 2]].tolist() == pytest.approx([0.5, 0.5], abs=0.1)


def test_a_curve_of_exits_is_a_line_from_the_first_exit_to_nobody_leaving() -> None:
    ends = [{"share": 0.2, "accuracy": 0.8}, {"share": 1.5, "accuracy": 0.95}]
    run = {
        "dynamic": {"share": 0.5, "path_share": 0.5, "accuracy": 0.9},
        "random": {"accuracy": 0.85},
        "source": {"share": 1.0, "accuracy": 0.9},
        "static": [{"share": 0.5, "accuracy": 0.88}, {"share": 1.0, "accuracy": 0.91}],
        "fixed": ends,
        "curve": [ends[1], {"share": 0.6, "accuracy": 0.92}, ends[0]],
    }
    series = points([run])
    assert series["one exit for all"] == [(0.2, 0.8)]
    assert series["nobody leaves"] == [(1.5, 0.95)]
    assert not series["fixed routes"]
    drawn = ElementTree.fromstring(figure("exits", series, curves([run])))
    (line,) = drawn.iter("{http://www.w3.org/2000/svg}polyline")
    places = [tuple(map(float, corner.split(","))) for corner in line.attrib["points"].split()]
    across, down = zip(*places, strict=True)
    assert list(across) == sorted(across)
    assert list(down) == sorted(down, reverse=True)
    assert across[-1] < WIDTH, "the specialist costs more than the source and is inside of the frame"
