"""Folders of images: what the labels are, and what is refused because labels would be guessed."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import dyncompile as dc
from dyncompile.cli.data import load_data
from tests.tiny import conv_net


@pytest.fixture(scope="module")
def dyn() -> dc.DynamicModel:
    model, example = conv_net()
    return dc.dynamize(model, "dsnet(divisor=1, gate=False)", example)


def drawn(folder: Path, *places: str) -> str:
    """A folder with one image at each place."""
    for place in places:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / place)
    return str(folder)


@pytest.mark.parametrize("train", ["train", "training", "Train"])
@pytest.mark.parametrize("validation", ["val", "valid", "validation", "dev", "test"])
def test_labels_are_places_among_the_training_classes(
    train: str, validation: str, dyn: dc.DynamicModel, tmp_path: Path
) -> None:
    places = (f"{train}/a/0.png", f"{train}/b/0.png", f"{train}/c/0.png", f"{validation}/c/1.png")
    sets = load_data(drawn(tmp_path, *places), dyn)
    assert [sets.train[i][1] for i in range(3)] == [0, 1, 2]
    assert (len(sets.validation), sets.validation[0][1]) == (1, 2)


def test_hidden_folders_and_files_hold_no_images(dyn: dc.DynamicModel, tmp_path: Path) -> None:
    (tmp_path / "__pycache__").mkdir()
    folder = drawn(tmp_path, ".ipynb_checkpoints/0.png", "a/0.png", "a/.x/0.png", "b/0.png", "b/._0.png")
    whole = load_data(folder, dyn).train.dataset
    assert (whole.classes, len(whole)) == (["a", "b"], 2)


def test_train_may_be_a_class_beside_others(dyn: dc.DynamicModel, tmp_path: Path) -> None:
    sets = load_data(drawn(tmp_path, "bus/0.png", "train/0.png"), dyn)
    assert sets.train.dataset.classes == ["bus", "train"]


@pytest.mark.parametrize(
    ("places", "said"),
    [
        (("train/a/0.png", "val/b/0.png"), "the training part has no class b"),
        (("a/0.png", "val/a/0.png"), "val/ is a validation part, and there is no training part"),
        (("dev/0.png", "test/0.png"), "name the parts train or training, and val or"),
        (("train/0.png", "val/0.png"), "store CLASS/NAME.png"),
        (("a/0.png", "b/0.png", "c/.0.png"), "no image is in the folder of a class: c"),
    ],
)
def test_what_would_mislabel_is_refused(
    places: tuple[str, ...], said: str, dyn: dc.DynamicModel, tmp_path: Path
) -> None:
    with pytest.raises(dc.InputError, match=said) as caught:
        load_data(drawn(tmp_path, *places), dyn)
    assert caught.value.fix
