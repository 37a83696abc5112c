"""Our counts beside fvcore's, those of torch's own counter, and what arithmetic says."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.counting.cases import CASES, Case, Inputs
from benchmarks.record import write
from dyncompile.analysis.facts import analyze
from dyncompile.analysis.macs import evaluate
from dyncompile.capture import capture
from dyncompile.verify.compare import count_macs

_CONTRACTIONS = ("conv", "linear", "matmul", "bmm", "addmm", "einsum")


def run() -> dict[str, Any]:
    """Count every case by every counter; each count as a share of the derived one."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = {name: measure(case) for name, case in CASES.items()}
    write("counting", {"cases": found, "meaning": MEANING})
    return {
        name: ", ".join(f"{key} {one[key] / one['derived']:.4f}" for key in MEANING if key in one)
        for name, one in found.items()
    }


def measure(case: Case) -> dict[str, Any]:
    """MACs per sample by counter; ours with the operators that it says it has no cost for."""
    torch.manual_seed(0)
    model, inputs = case.make(1)
    args, kwargs = as_call(inputs)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*args, **kwargs)
    ours, unmodeled = own(*case.make(2))
    return {
        "derived": case.macs,
        "ours": ours,
        "unmodeled": unmodeled,
        "torch, no_grad": counter.get_total_flops() / 2,
        "torch, unfused": count_macs(lambda: model(*args, **kwargs)),
        **_fvcore(model, args, kwargs),
    }


def own(model: nn.Module, inputs: Inputs) -> tuple[int, list[str]]:
    """MACs per sample from the inferred types, and operators whose cost is said to be unknown."""
    args, kwargs = as_call(inputs)
    facts = analyze(capture(model, args, kwargs))
    return evaluate(facts.macs.path, {}), sorted(set(facts.macs.unmodeled.values()))


def as_call(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(positional, keyword) inputs."""
    return ((), inputs) if isinstance(inputs, dict) else (inputs, {})


class _Positional(nn.Module):
    """A network with its keyword inputs in order: fvcore passes no keywords."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *values: Any) -> Any:
        """Whatever the network gives, as tensors alone."""
        out = self.model(**dict(zip(self.names, values, strict=True)))
        return getattr(out, "logits", out)


def _fvcore(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, float]:
    """The total of fvcore, and its part for contractions. It traces: only tensors are inputs."""
    tensors = {name: value for name, value in kwargs.items() if isinstance(value, torch.Tensor)}
    subject = _Positional(model, tuple(tensors)) if kwargs else model
    analysis = FlopCountAnalysis(subject, args or tuple(tensors.values()))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    by_operator: Mapping[str, float] = analysis.by_operator()
    contractions = sum(n for name, n in by_operator.items() if name in _CONTRACTIONS)
    return {"fvcore": float(sum(by_operator.values())), "fvcore, contractions": float(contractions)}


MEANING = {
    "derived": "multiply-accumulates per sample by hand: benchmarks/counting/truth.py",
    "ours": "from dimension types of the captured graph; unmodeled: operators without a cost, which it names",
    "torch, no_grad": "FlopCounterMode / 2 as it is mostly called",
    "torch, unfused": "FlopCounterMode / 2 with gradients on and attention unfused",
    "fvcore": "FlopCountAnalysis, all operators",
    "fvcore, contractions": "its convolutions, linear layers and matrix products",
}
