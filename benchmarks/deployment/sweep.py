"""All parts of all models; what is there already stays."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from benchmarks.deployment import parts
from benchmarks.deployment.subject import METHOD, Subject
from benchmarks.record import read, write

WIDTHS = (
    "torchvision:resnet50",
    "torchvision:mobilenet_v2",
    "timm:vit_small_patch16_224",
    "hf:BertForSequenceClassification",
)
"""Those whose static networks `benchmarks.twins` builds by hand."""
FULL = (*WIDTHS, "torchvision:swin_t", "timm:vit_base_patch16_224")
COMPILED = ("torchvision:resnet50", "timm:vit_small_patch16_224")
MEANING = "ratios of CPU times within rounds, see benchmarks/deployment"


def run() -> dict[str, Any]:
    """Measure all parts of all models anew; figures per line."""
    return sweep(planned())


def missing() -> dict[str, Any]:
    """Measure what has no results yet."""
    known = read("deployment", "models")
    return sweep((model, part) for model, part in planned() if part not in known.get(model, {}))


def planned() -> list[tuple[str, str]]:
    """(model, part), all parts of a model together."""
    return [(model, part) for model in FULL for part in parts.PARTS if _applies(model, part)]


def _applies(model: str, part: str) -> bool:
    return part.startswith("full") or model in WIDTHS


def sweep(wanted: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Measure these, and keep the other results that there are."""
    _quiet()
    found, subject = read("deployment", "models"), Subject("")
    for model, part in wanted:
        if model != subject.name:
            subject.forget()
            subject = Subject(model)
        found.setdefault(model, {})[part] = dict(parts.PARTS[part](subject))
        write("deployment", {"models": found, "meaning": MEANING, "method": METHOD})
    return lines(found)


def compiled() -> dict[str, Any]:
    """Deployed with inductor at full capacity over the compiled source; takes minutes of compiling."""
    return _compiled(COMPILED)


def compiled_missing() -> dict[str, Any]:
    """The same for models without results."""
    return _compiled([model for model in COMPILED if model not in read("deployment_compiled", "models")])


def _compiled(models: Iterable[str]) -> dict[str, Any]:
    _quiet()
    found = read("deployment_compiled", "models")
    for model in models:
        found[model] = {"full, batch 1": dict(parts.compiled(Subject(model)))}
        write("deployment_compiled", {"models": found, "meaning": MEANING, "method": METHOD})
    return lines(found)


def lines(found: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Figures, one line per model and part, medians of ratios."""
    return {f"{name} {part}": _told(values) for name, rows in found.items() for part, values in rows.items()}


def _told(values: Mapping[str, Any]) -> str:
    if "median" in values:
        return f"{values['median']:.3f}"
    return ", ".join(
        f"{name} ({_told(value)})" if isinstance(value, dict) else f"{name} {value:.3g}"
        for name, value in values.items()
    )


def _quiet() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
