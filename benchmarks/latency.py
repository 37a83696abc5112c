"""How well `Latency` predicts: predicted against measured time on random routes.

    error = predicted share of the source's time / measured share - 1

Alike: a batch whose rows all take one random route, which is what the model says it predicts. Mixed: every
row draws its own; what parting rows, and small groups, cost is not in the model. There `alone` is what a
model predicts that was measured at batch 1: every row by itself. All in CPU time of one thread, measured as
ratios of interleaved pairs to the source's static graph; `macs` is the same error for the share of MACs.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx

import dyncompile as dc
from benchmarks.sweep import Place, Sweep
from dyncompile import zoo
from dyncompile.latency import Latency, ProcessClock, Ratio, compare

MODELS = {"torchvision:resnet18": 4, "torchvision:resnet50": 1, "timm:vit_small_patch16_224": 1}
"""Specification -> rows of the larger batch; 1 has no other."""
METHODS = ("dsnet(per='stage')", "lcnet(channels=False)")
PLAN = tuple((model, method) for model in MODELS for method in METHODS)
ROUTES, PAIRS, ROUNDS = 12, 5, 7


@dataclass(frozen=True)
class _Subject:
    """A dynamic model beside its source's static graph."""

    dyn: dc.DynamicModel
    static: fx.GraphModule
    images: Tensor

    def latency(self, batch: int) -> Latency:
        """Measured here and now."""
        with tempfile.TemporaryDirectory() as folder:
            x = self.images[:batch]
            return Latency(self.dyn, inputs=x, clock=ProcessClock(), rounds=ROUNDS, cache=folder)


def run() -> dict[str, Any]:
    """Quartiles of the errors per model, method and kind of batch; written after every model."""
    return {name: told(found) for name, found in SWEEP.run().items()}


def missing() -> dict[str, Any]:
    """The same for models and methods without results."""
    return {name: told(found) for name, found in SWEEP.missing().items()}


def _kinds(batch: int) -> tuple[str, ...]:
    """What is measured of a model, in order."""
    return ("batch 1", f"batch {batch}, alike", f"batch {batch}, mixed") if batch > 1 else ("batch 1",)


def _place(step: tuple[str, str], kind: str) -> Place:
    return (f"{' '.join(step)}, {kind}",)


def _rows(step: tuple[str, str]) -> Iterator[tuple[Place, Any]]:
    for kind, found in zip(_kinds(MODELS[step[0]]), measure(*step, MODELS[step[0]]), strict=True):
        yield _place(step, kind), found


SWEEP = Sweep(
    "latency",
    "rows",
    plan=lambda: PLAN,
    last=lambda step: _place(step, _kinds(MODELS[step[0]])[-1]),
    measure=_rows,
    facts={"meaning": "relative errors of predicted shares of the source's time (CPU time, one thread)"},
)


def told(found: dict[str, Any]) -> str:
    """A row in words: medians and quartiles of the absolute errors."""
    parts = [f"{name} {_quartiles(found[name])}" for name in ("predicted", "alone", "macs") if name in found]
    return f"|error| of {', '.join(parts)}; correlation {found['correlation']:.2f}"


def _quartiles(errors: dict[str, Any]) -> str:
    one = errors["absolute"]
    return f"{one['median']:.1%} [{one['low']:.1%}, {one['high']:.1%}]"


def measure(name: str, method: str, batch: int) -> Iterator[dict[str, Any]]:
    """Results of one model, by `_kinds`."""
    source = zoo.load(name)
    dyn = dc.dynamize(source.model.eval(), method, source.args).eval()
    shape = batch, *source.args[0].shape[1:]
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    one = _Subject(dyn, dc.specialize(dyn, {}), images)
    single = one.latency(1)
    with torch.inference_mode():
        yield _results(one, 1, {"predicted": single}, mixed=False)
        if batch > 1:
            several = one.latency(batch)
            yield _results(one, batch, {"predicted": several}, mixed=False)
            models = {"predicted": several, "alone": single}
            yield _results(one, batch, models, mixed=True)


def _results(one: _Subject, batch: int, models: dict[str, Latency], *, mixed: bool) -> dict[str, Any]:
    """Routes with what was predicted and measured, and errors per prediction.

    All predictions are relative to the source at this batch.
    """
    reference = models["predicted"].source
    shares: dict[str, Callable[[dc.Route], Tensor]] = {
        name: lambda route, model=model: model(route) / reference for name, model in models.items()
    }
    shares["macs"] = lambda route: one.dyn.macs(route) / one.dyn.static_macs
    rows: list[dict[str, Any]] = []
    for seed in range(ROUTES):
        policy = dc.Sampled(seed, per_sample=mixed)
        route = {name: policy.decide(choice, batch, None) for name, choice in one.dyn.choices.items()}
        found = {name: float(share(route).mean()) for name, share in shares.items()}
        rows.append({**found, "measured": asdict(_time(one, one.images[:batch], route))})
    measured = [row["measured"]["median"] for row in rows]
    errors = {name: [row[name] / own - 1 for row, own in zip(rows, measured, strict=True)] for name in shares}
    return {
        "routes": rows,
        "correlation": statistics.correlation([row["predicted"] for row in rows], measured),
        **{name: _spread(values) for name, values in errors.items()},
    }


def _time(one: _Subject, x: Tensor, route: dc.Route) -> Ratio:
    """CPU time of the dynamic model on a route over that of the source's static graph."""
    policy = dc.Forced(route)
    return compare(lambda: one.dyn.run(x, policy=policy), lambda: one.static(x), PAIRS).cpu


def _spread(errors: list[float]) -> dict[str, Any]:
    sizes = [abs(error) for error in errors]
    return {"signed": asdict(Ratio.of(errors)), "absolute": asdict(Ratio.of(sizes)), "largest": max(sizes)}
