"""Real time of skipped branches: L-Net at forced rates, where every sample skips branches of its own.

ideal saving = share of MACs removed;   realized = (1 - time of dynamic / time of reference) / ideal

There are two references: the source, and the dynamic model itself with everything kept. Deployed models have
their batch norms folded, so that over the source they gain more than what they skip. A fraction of MACs is
not the same fraction of time: a branch of late, small maps costs more time per MAC than an early one, so
realized savings of a single drawn route scatter around 1 even for static networks. Batch 1 is therefore
several calls, each of a route of its own.

It takes about a quarter of an hour of an idle core; ``python -m benchmarks --missing skipping`` goes on with
a run that was cut short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

import dyncompile as dc
from benchmarks.sweep import Place, Sweep
from dyncompile import zoo
from dyncompile.latency import Times, time_in_turns
from dyncompile.latency.timing import Asked

RESNET, VIT = "torchvision:resnet50", "timm:vit_base_patch16_224"
RATES = (0.0, 0.25, 0.5, 0.75)
DECIDED = 0.5
"""The rate at which gates are asked as well: what a trained model's call costs."""
SINGLES = 4
MEANING = (
    "evaluation time over the source's; samples skip branches drawn at random, each its own; deployed: batch "
    "norms folded into convolutions (the source's are not); realized: share of the ideal saving, over the "
    "source and over the same model with nothing skipped"
)


@dataclass(frozen=True, slots=True)
class Part:
    """What is timed in one go: all rates in turn with the source, so many rounds."""

    model: str
    kind: Literal["deployed", "plain"]
    batch: int
    rounds: int
    warm_up: int = 1

    @property
    def where(self) -> str:
        """As rows of the results call it."""
        return f"batch {self.batch}, {self.kind}"


PLAN = (
    Part(RESNET, "plain", 1, 9),
    Part(RESNET, "deployed", 1, 9),
    Part(VIT, "deployed", 1, 9),
    Part(RESNET, "deployed", 8, 5),
    Part(RESNET, "plain", 8, 5),
    Part(VIT, "deployed", 8, 5),
    Part(RESNET, "deployed", 32, 3),
    Part(VIT, "deployed", 32, 3),
)
"""From the short ones to the long ones; all are written as soon as they are measured."""


def run() -> dict[str, Any]:
    """Time over the source's at every rate and batch, with the share of MACs and the realized saving."""
    return lines(SWEEP.run())


def missing() -> dict[str, Any]:
    """The same for parts without results."""
    return lines(SWEEP.missing())


def lines(models: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Figures, one line per model and row."""
    return {f"{name} {row}": _line(found) for name, table in models.items() for row, found in table.items()}


def _line(found: Mapping[str, Any]) -> str:
    text = f"{found['macs']:.3f} MACs, {found['time']['cpu']['median']:.3f} time"
    if "realized" in found:
        text += f", {found['realized']:.0%} of the ideal, {found['realized_own']:.0%} of its own"
    return text


def _placed(part: Part) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Rows of a part by model, label and part."""
    for label, found in _measure(part).items():
        yield (part.model, f"{label}, {part.where}"), found


SWEEP = Sweep(
    "skipping",
    "models",
    plan=lambda: PLAN,
    last=lambda part: (part.model, f"skip {RATES[-1]:.0%}, {part.where}"),
    measure=_placed,
    facts={"meaning": MEANING},
)


def _measure(part: Part) -> dict[str, Any]:
    """Label -> MACs, time over the source's and realized savings."""
    model, dyn, image = _models(part.model)
    rows = max(part.batch, SINGLES if part.batch == 1 else 1)
    x = torch.randn(rows, *image.shape[1:], generator=torch.Generator().manual_seed(0))
    chunks = x.split(part.batch)
    fast = dc.deploy(dyn) if part.kind == "deployed" else dyn
    routes = {f"skip {rate:.0%}": skipping(dyn, rate, rows) for rate in RATES}
    decided, own = f"decide, skip {DECIDED:.0%}", routes[f"skip {DECIDED:.0%}"]
    with torch.inference_mode():
        runs: dict[str, Callable[[], object]] = {
            "source": lambda: [model(chunk) for chunk in chunks],
            "gates, all kept": lambda: [fast.run(chunk, policy=dc.Learned()) for chunk in chunks],
            decided: _routed(fast, chunks, own, Asked),
            **{label: _routed(fast, chunks, route, dc.Forced) for label, route in routes.items()},
        }
        times = time_in_turns(runs, part.rounds, part.warm_up)
    macs = {label: float(dyn.macs(route).mean()) / dyn.static_macs for label, route in routes.items()}
    macs[decided] = float(dyn.spent(own).mean()) / dyn.static_macs
    gates = {"macs": 1 + dyn.decision_macs / dyn.static_macs, **_compared(times, "gates, all kept", 1)}
    return {"gates, all kept": gates} | {
        label: {"macs": share, **_compared(times, label, share)} for label, share in macs.items()
    }


@cache
def _models(name: str) -> tuple[nn.Module, dc.DynamicModel, Tensor]:
    """The source, its dynamic form, and one image [1, C, H, W]."""
    source = zoo.load(name)
    model = source.model.eval()
    return model, dc.dynamize(model, "lcnet(channels=False)", source.args).eval(), source.args[0][:1]


def _routed(
    fast: dc.DynamicModel,
    chunks: tuple[Tensor, ...],
    route: dc.Route,
    kind: Callable[[dc.Route], dc.Policy],
) -> Callable[[], object]:
    """Every chunk by its rows of the route, which a policy of some kind says."""
    parts = {name: rows.split(len(chunks[0])) for name, rows in route.items()}
    policies = [kind({name: rows[i] for name, rows in parts.items()}) for i in range(len(chunks))]
    return lambda: [fast.run(x, policy=policy) for x, policy in zip(chunks, policies, strict=True)]


def _compared(times: Mapping[str, Times], label: str, macs: float) -> dict[str, Any]:
    """Over the source, and over the same model where nothing is skipped."""
    time, own = (times[label].over(times[base]) for base in ("source", "skip 0%"))
    found: dict[str, Any] = {"time": asdict(time), "own": asdict(own)}
    if macs < 1:
        found["realized"] = (1 - time.cpu.median) / (1 - macs)
        found["realized_own"] = (1 - own.cpu.median) / (1 - macs)
    return found


def skipping(dyn: dc.DynamicModel, rate: float, rows: int, seed: int = 0) -> dc.Route:
    """Every row skips this share of the branches, drawn for itself."""
    generator = torch.Generator().manual_seed(seed)
    names = list(dyn.choices)
    kept = torch.ones(rows, len(names))
    for row in kept:
        row[torch.randperm(len(names), generator=generator)[: round(rate * len(names))]] = 0
    return {name: kept[:, i : i + 1] for i, name in enumerate(names)}
