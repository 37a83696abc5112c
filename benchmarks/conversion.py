"""What `dynamize` costs beside the two bare exports that it needs: interleaved pairs in one process."""

from __future__ import annotations

import copy
import warnings
from dataclasses import asdict
from typing import Any

import torch
from torch.export import Dim, export

import dyncompile as dc
from benchmarks.record import write
from dyncompile import zoo
from dyncompile.latency import compare

MODELS = (
    "torchvision:resnet18",
    "torchvision:mobilenet_v3_small",
    "torchvision:densenet121",
    "timm:vit_tiny_patch16_224",
    "timm:swin_tiny_patch4_window7_224",
    "hf:BertForSequenceClassification?num_hidden_layers=4",
)
PAIRS = 3


def bare_exports(model: torch.nn.Module, source: zoo.Source) -> list[Any]:
    """torch.export of the training and of the evaluation graph, each on a deep copy, and nothing else."""

    def spec(value: Any) -> Any:
        return {0: Dim.DYNAMIC} if isinstance(value, torch.Tensor) and value.dim() else None

    shapes = tuple(map(spec, source.args)) if source.args else {k: spec(v) for k, v in source.kwargs.items()}
    return [
        export(
            copy.deepcopy(model).train(training),
            source.args,
            source.kwargs,
            dynamic_shapes=shapes,
            strict=False,
        ).module()
        for training in (True, False)
    ]


def run() -> dict[str, Any]:
    """Ratio of times, whole `dynamize` over both exports, per model."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    ratios: dict[str, Any] = {}
    for name in MODELS:
        source = zoo.load(name)
        inputs = source.args or source.kwargs

        def whole(model: torch.nn.Module = source.model, inputs: Any = inputs) -> object:
            return dc.dynamize(model, "dsnet", inputs)

        def exports(model: torch.nn.Module = source.model, source: zoo.Source = source) -> object:
            return bare_exports(model, source)

        ratios[name] = asdict(compare(whole, exports, PAIRS))
    write("conversion", {"ratios": ratios, "meaning": "time of dynamize over time of two bare exports"})
    return {
        name: f"{r['wall']['median']:.2f} wall, {r['cpu']['median']:.2f} CPU" for name, r in ratios.items()
    }
