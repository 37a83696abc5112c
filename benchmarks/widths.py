"""Real time of width slicing beside the source: dynamic at full capacity, and every specialized width."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from typing import Any

import torch

import dyncompile as dc
from benchmarks.record import write
from dyncompile import zoo
from dyncompile.latency import compare

MODELS = ("torchvision:resnet18", "torchvision:mobilenet_v2", "timm:vit_tiny_patch16_224")
BATCH = 4
PAIRS = 11


def run() -> dict[str, Any]:
    """Ratios of evaluation times over the source's, with the share of MACs, per model and width."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name in MODELS:
        source = zoo.load(name, batch=BATCH)
        results[name] = _measure(source)
    write("widths", {"batch": BATCH, "models": results, "meaning": "evaluation time over the source's"})
    return {
        f"{name} {row}": f"{value['macs']:.3f} MACs, {value['time']['wall']['median']:.3f} time"
        for name, rows in results.items()
        for row, value in rows.items()
    }


def _measure(source: zoo.Source) -> dict[str, Any]:
    model, (x,) = source.model.eval(), source.args
    dyn = dc.dynamize(model, "dsnet", x).eval()
    rows: dict[str, Any] = {}
    with torch.inference_mode():
        rows["dynamic, full"] = {
            "macs": 1.0,
            "time": asdict(compare(lambda: dyn.run(x, policy=dc.Full()), lambda: model(x), PAIRS)),
        }
        for column, label in enumerate(dyn.choices["width"].labels):
            route = dyn.route(column)
            static = dc.specialize(dyn, route)
            rows[f"specialized, {label}"] = {
                "macs": float(dyn.macs(route)[0]) / dyn.static_macs,
                "time": asdict(compare(lambda run=static: run(x), lambda: model(x), PAIRS)),
            }
    return rows
