"""What being dynamic costs in training: a step at full capacity beside the source's own step.

A step is forward, cross-entropy, backward and SGD with momentum. Times are ratios of interleaved pairs.
Memory is the peak of what tensors take during a step beyond what stands before it (parameters, gradients,
momentum), from torch's profiler, which sees every allocation; it is exact and the same in every run.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import dyncompile as dc
from benchmarks.record import write
from dyncompile import zoo
from dyncompile.latency import compare

MODELS = ("timm:resnet18?num_classes=10", "timm:vit_tiny_patch16_224?num_classes=10&img_size=64&depth=6")
BATCH, PIXELS = 16, 64
PAIRS = 15


def run() -> dict[str, Any]:
    """Ratios of times and of peak memory, dynamic over source, per model."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results = {name: _measure(name) for name in MODELS}
    meaning = "training step of the dynamic model at full capacity over the source's"
    write(
        "training_step",
        {"batch": BATCH, "pixels": PIXELS, "pairs": PAIRS, "models": results, "meaning": meaning},
    )
    return {name: _describe(result) for name, result in results.items()}


def _measure(name: str) -> dict[str, Any]:
    model = zoo.load(name).model.train()
    torch.manual_seed(0)
    x, labels = torch.randn(BATCH, 3, PIXELS, PIXELS), torch.randint(10, (BATCH,))
    dyn = dc.dynamize(model, "dsnet", x[:2]).train()
    source = _step(model, lambda: model(x), labels)
    dynamic = _step(dyn, lambda: dyn.run(x, policy=dc.Full())[0], labels)
    time = asdict(compare(dynamic, source, PAIRS))
    return {"time": time, "memory": {"dynamic": _peak(dynamic), "source": _peak(source)}}


def _step(module: nn.Module, forward: Callable[[], Tensor], labels: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        F.cross_entropy(forward(), labels).backward()
        optimizer.step()

    return step


def _peak(step: Callable[[], None]) -> int:
    """Bytes that a step allocates beyond those that stand before it, at most at any moment."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [(e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]"]
    total, peak = 0, 0
    for _, change in sorted(changes, key=lambda one: one[0]):
        total += change
        peak = max(peak, total)
    return peak


def _describe(result: dict[str, Any]) -> str:
    wall, cpu, memory = result["time"]["wall"], result["time"]["cpu"], result["memory"]
    ratio = memory["dynamic"] / memory["source"]
    return (
        f"wall {wall['median']:.3f} ({wall['low']:.3f} to {wall['high']:.3f}), "
        f"CPU {cpu['median']:.3f} ({cpu['low']:.3f} to {cpu['high']:.3f}), "
        f"peak memory {ratio:.3f} ({memory['dynamic'] / 2**20:.1f} over {memory['source'] / 2**20:.1f} MiB)"
    )
