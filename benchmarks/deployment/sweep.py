"""All parts of all models; what is there already stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from benchmarks.deployment import parts
from benchmarks.deployment.subject import METHOD, Subject
from benchmarks.sweep import Sweep

WIDTHS = (
    "torchvision:resnet50",
    "torchvision:mobilenet_v2",
    "timm:vit_small_patch16_224",
    "hf:BertForSequenceClassification",
    "timm:swin_tiny_patch4_window7_224",
    "timm:vit_base_patch16_224",
)
"""Those whose static networks `benchmarks.twins` builds by hand."""
FULL = (*WIDTHS, "torchvision:swin_t")
COMPILED = (
    "timm:vit_small_patch16_224",
    "torchvision:resnet50",
    "hf:BertForSequenceClassification",
    "torchvision:mobilenet_v2",
    "torchvision:swin_t",
)
"""From those that compile quickly to those that take long."""
MEANING = "ratios of CPU times within rounds, see benchmarks/deployment"


def run() -> dict[str, Any]:
    """Measure all parts of all models anew; figures per line."""
    return lines(SWEEP.run())


def missing() -> dict[str, Any]:
    """Measure what has no results yet."""
    return lines(SWEEP.missing())


def some(wanted: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Measure these, and keep the other results that there are."""
    return lines(SWEEP.some(wanted))


def planned() -> list[tuple[str, str]]:
    """(model, part), all parts of a model together."""
    return [(model, part) for model in FULL for part in parts.PARTS if _applies(model, part)]


def _applies(model: str, part: str) -> bool:
    return part.startswith("full") or model in WIDTHS


@lru_cache(maxsize=1)
def _subject(model: str) -> Subject:
    """One at a time: each holds its model many times over."""
    return Subject(model)


SWEEP = Sweep(
    "deployment",
    "models",
    plan=planned,
    last=lambda step: step,
    measure=lambda step: [(step, dict(parts.PARTS[step[1]](_subject(step[0]))))],
    facts={"meaning": MEANING, "method": METHOD},
)
_COMPILED_SWEEP = Sweep(
    "deployment_compiled",
    "models",
    plan=lambda: [(model, "full, batch 1") for model in COMPILED],
    last=lambda step: step,
    measure=lambda step: [(step, dict(parts.compiled(_subject(step[0]))))],
    facts={"meaning": MEANING, "method": METHOD},
)


def compiled() -> dict[str, Any]:
    """Deployed with inductor at full capacity over the compiled source; takes minutes of compiling."""
    return lines(_COMPILED_SWEEP.run())


def compiled_missing() -> dict[str, Any]:
    """The same for models without results."""
    return lines(_COMPILED_SWEEP.missing())


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
