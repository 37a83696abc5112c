"""Real time of skipped branches: L-Net at forced rates, where every sample skips branches of its own.

ideal saving = share of MACs removed;   realized = (1 - time of dynamic / time of reference) / ideal

There are two references: the source, and the dynamic model itself with everything kept. Deployed models have
their batch norms folded, so that over the source they gain more than what they skip. A fraction of MACs is
not the same fraction of time: a branch of late, small maps costs more time per MAC than an early one, so
realized savings of a single drawn route scatter around 1 even for static networks. Batch 1 is therefore
several calls, each of a route of its own.

It takes about a quarter of an hour of an idle core. Parts that are measured are kept in ``out/skipping.json``
until all are there: a run that was cut short goes on where it stopped.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import dyncompile as dc
from benchmarks.memory import keep_memory
from benchmarks.record import machine, write
from dyncompile import zoo
from dyncompile.latency import Times, time_in_turns

RESNET, VIT = "torchvision:resnet50", "timm:vit_base_patch16_224"
RATES = (0.0, 0.25, 0.5, 0.75)
SINGLES = 4
KEPT = Path(__file__).parents[1] / "out" / "skipping.json"
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
    Part(VIT, "deployed", 1, 5),
    Part(RESNET, "deployed", 8, 5),
    Part(RESNET, "plain", 8, 5),
    Part(VIT, "deployed", 8, 3),
    Part(RESNET, "deployed", 32, 3),
    Part(VIT, "deployed", 32, 3),
)
"""From the short ones to the long ones; all are written as soon as they are measured."""


def run() -> dict[str, Any]:
    """Time over the source's at every rate and batch, with the share of MACs and the realized saving."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    keep_memory()
    rows = _kept()
    for part in PLAN:
        if part.where not in rows.get(part.model, {}):
            rows.setdefault(part.model, {})[part.where] = _measure(part)
            KEPT.parent.mkdir(exist_ok=True)
            KEPT.write_text(json.dumps({"machine": machine(), "rows": rows}))
            write("skipping", {"models": _flat(rows), "meaning": MEANING})
    KEPT.unlink(missing_ok=True)
    return {
        f"{name} {row}": _line(found) for name, table in _flat(rows).items() for row, found in table.items()
    }


def _line(found: Mapping[str, Any]) -> str:
    text = f"{found['macs']:.3f} MACs, {found['time']['cpu']['median']:.3f} time"
    if "realized" in found:
        text += f", {found['realized']:.0%} of the ideal, {found['realized_own']:.0%} of its own"
    return text


Rows = dict[str, dict[str, dict[str, Any]]]
"""Model -> part -> label -> what was found."""


def _kept() -> Rows:
    """Parts that an earlier run has measured, on this machine."""
    if not KEPT.is_file():
        return {}
    found = json.loads(KEPT.read_text())
    return found["rows"] if found["machine"] == machine() else {}


def _flat(rows: Rows) -> dict[str, dict[str, Any]]:
    """Model -> label and part -> what was found."""
    return {
        model: {f"{label}, {where}": one for where, table in parts.items() for label, one in table.items()}
        for model, parts in rows.items()
    }


def _measure(part: Part) -> dict[str, Any]:
    """Label -> MACs, time over the source's and realized savings."""
    model, dyn, image = _models(part.model)
    rows = max(part.batch, SINGLES if part.batch == 1 else 1)
    x = torch.randn(rows, *image.shape[1:], generator=torch.Generator().manual_seed(0))
    chunks = x.split(part.batch)
    fast = dc.deploy(dyn) if part.kind == "deployed" else dyn
    routes = {f"skip {rate:.0%}": skipping(dyn, rate, rows) for rate in RATES}
    with torch.inference_mode():
        runs: dict[str, Callable[[], object]] = {
            "source": lambda: [model(chunk) for chunk in chunks],
            "gates, all kept": lambda: [fast.run(chunk, policy=dc.Learned()) for chunk in chunks],
            **{label: _forced(fast, chunks, route) for label, route in routes.items()},
        }
        times = time_in_turns(runs, part.rounds, part.warm_up)
    macs = {label: float(dyn.macs(route).mean()) / dyn.static_macs for label, route in routes.items()}
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


def _forced(fast: dc.DynamicModel, chunks: tuple[Tensor, ...], route: dc.Route) -> Callable[[], object]:
    """Every chunk by its rows of the route."""
    parts = {name: rows.split(len(chunks[0])) for name, rows in route.items()}
    policies = [dc.Forced({name: rows[i] for name, rows in parts.items()}) for i in range(len(chunks))]
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
