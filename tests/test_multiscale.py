"""The benchmark of scenes at several scales: what is pasted where, that epochs repeat, what is summed up."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor

from benchmarks.fashion.data import Split
from benchmarks.fashion.plot import figure
from benchmarks.multiscale import scenes
from benchmarks.multiscale.report import points, summary
from benchmarks.multiscale.scenes import BINS, SIDES, Scenes, compose, drawn

DARK = (torch.zeros(1, 120, 110),)


def squares(count: int) -> Tensor:
    """Products that fill their photograph: [count, 1, 28, 28]."""
    return torch.ones(count, 1, 28, 28)


def test_products_have_their_side_and_lie_inside() -> None:
    images, sides = compose(squares(64), DARK, torch.Generator().manual_seed(0))
    assert images.shape == (64, 1, 64, 64)
    bright = images[:, 0] - images.min() > 0.5 * (images.max() - images.min())
    found = bright.flatten(1).sum(1).double().sqrt()
    torch.testing.assert_close(found, sides.double(), rtol=0.08, atol=0.8)
    assert len({tuple(one.nonzero()[0].tolist()) for one in bright}) > 32, "places differ"
    assert SIDES[0] <= float(sides.min()) < 18
    assert 45 < float(sides.max()) <= SIDES[1]


def test_backgrounds_come_from_the_photograph_alone() -> None:
    ramp = (torch.linspace(0.2, 0.4, 110).expand(1, 120, -1),)
    images, _ = compose(torch.zeros(8, 1, 28, 28), ramp, torch.Generator().manual_seed(0))
    pixels = 0.3 + 0.25 * images
    assert 0.6 * 0.2 - 1e-4 <= float(pixels.min()) <= float(pixels.max()) <= 0.6 * 0.4 + 1e-4


def test_an_epoch_is_drawn_again_from_its_seed_and_the_next_is_another() -> None:
    products = Split(torch.rand(10, 1, 28, 28), torch.arange(10))
    epochs = Scenes(products, DARK, 4, torch.Generator().manual_seed(3))
    first, second = list(epochs), list(epochs)
    epochs.generator.manual_seed(3)
    again = list(epochs)
    assert len(epochs) == len(first) == 3
    assert sorted(int(label) for _, labels in first for label in labels) == list(range(10))
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], second[0][0])


def test_every_scene_is_in_one_bin() -> None:
    products = Split(torch.rand(600, 1, 28, 28), torch.arange(600) % 10)
    found = drawn(products, DARK, 0)
    rows = [found.within(*sides) for sides in BINS.values()]
    assert sorted(torch.cat(rows).tolist()) == list(range(600))
    assert min(map(len, rows)) > 150
    assert torch.equal(found.split.images, drawn(products, DARK, 0).split.images)


def result(accuracy: float) -> dict[str, object]:
    """Results of a seed, as the protocol writes them."""
    scales = dict.fromkeys(BINS, accuracy)
    fixed = [
        {"label": label, "share": share, "accuracy": accuracy - loss, "by_scale": scales}
        for label, share, loss in (("32", 0.25, 0.2), ("64", 1.0, 0.0))
    ]
    learned = {
        "target": 0.6,
        "share": 0.625,
        "path_share": 0.55,
        "accuracy": accuracy,
        "random": {"accuracy": accuracy - 0.1},
        "sizes_by_scale": {name: [1 - k / 2, k / 2] for k, name in enumerate(BINS)},
    }
    return {"source": {"accuracy": accuracy}, "fixed": fixed, "learned": [learned]}


def test_a_summary_sets_the_learned_beside_fixed_sizes_of_equal_cost() -> None:
    found = [result(0.7), result(0.9)]
    lines = summary(found)
    assert lines["source"] == "80.0 ± 14.1"
    assert lines["size 32, 25.0% of the MACs"].startswith("60.0 ± 14.1")
    line = lines["budget 60%"]
    assert "80.0 ± 14.1 at 62.5%" in line
    assert "same mix at random 70.0 ± 14.1" in line
    assert "fixed sizes at these MACs 70.0 ± 14.1" in line  # halfway between 32 and 64
    assert "small 0%, medium 50%, large 100%" in line
    drawing = ElementTree.fromstring(figure("a title", points(found)))
    circles = list(drawing.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(circles) == 2 * (1 + 1 + 2 + 1) + 4


def test_photographs_of_parts_do_not_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = torch.arange(200.0).expand(50, -1)[..., None].expand(-1, -1, 3).numpy()

    class Samples:
        images = (ramp,)

    class Datasets:
        load_sample_images = Samples

    monkeypatch.setattr(scenes.importlib, "import_module", lambda name: Datasets)
    parts = [scenes.photographs(part)[0] * 255 for part in ("train", "validation", "test")]
    assert torch.cat(parts, 2)[0, 0].round().tolist() == list(range(200))
