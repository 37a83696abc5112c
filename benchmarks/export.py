"""Exported programs in ONNX Runtime: the model's routes and outputs, and what skipping saves there.

A model of each method is written at its real size, with random gates. Then the gates' last biases in the file
are set so that it keeps everything, and so that it drops everything that it can, and the two are timed in
turns (batch 1, one thread). Exits are forced by their thresholds.
"""

from __future__ import annotations

import copy
import importlib
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

import dyncompile as dc
from benchmarks.sweep import Sweep
from dyncompile import zoo
from dyncompile.latency import compare

MODELS = (
    ("torchvision:mobilenet_v2", "lcnet(channels=False)"),
    ("timm:vit_tiny_patch16_224", "lcnet(channels=False)"),
    ("torchvision:mobilenet_v2", "exits"),
    ("torchvision:mobilenet_v2", "resolution"),
    ("torchvision:mobilenet_v2", "dsnet"),
    ("torchvision:mobilenet_v2", "basisnet"),
    ("torchvision:mobilenet_v2", "routing"),
    ("timm:vit_tiny_patch16_224", "dsnet"),
    ("torchvision:resnet50", "lcnet(channels=False)"),
)
PAIRS = 15
FAR = 100.0
"""A bias that no features outweigh."""


def run() -> dict[str, Any]:
    """For every model: bytes, differences, and the time of all dropped over that of all kept."""
    return lines(SWEEP.run())


def missing() -> dict[str, Any]:
    """The same for models without results."""
    return lines(SWEEP.missing())


def lines(results: Mapping[str, Any]) -> dict[str, str]:
    """Figures, one line per model and method."""
    return {
        label: f"{found['share']:.3f} of the MACs, {found['time']['cpu']['median']:.3f} of the time, "
        f"outputs {found['difference']:.1e} apart (the largest: {found['largest output']:.1e})"
        for label, found in results.items()
    }


def measure(name: str, method: str) -> dict[str, Any]:
    """One model: exported, compared on three random images, timed."""
    torch.manual_seed(0)
    source = zoo.load(name)
    zoo.randomize(source.model, 0, inputs=(source.args, source.kwargs))
    dyn = _undecided(dc.dynamize(source.model.eval(), method, source.args).eval(), source.args)
    with tempfile.TemporaryDirectory() as folder:
        path, before = Path(folder) / "model.onnx", time.process_time()
        images = torch.randn(3, *source.args[0].shape[1:])
        written = dc.export(dyn, path, inputs=images)
        seconds = time.process_time() - before
        runs = {side: _session(path, dyn, rows) for side, rows in _sides(dyn).items()}
    x = source.args[0][:1].numpy()
    with torch.no_grad():
        largest = max(float(pytree.tree_leaves(dyn(row))[0].abs().max()) for row in images.split(1))
    shares = {side: _macs(dyn, run(x)) for side, run in runs.items()}
    found = compare(lambda: runs["dropped"](x), lambda: runs["kept"](x), PAIRS)
    return {
        "bytes": written.bytes,
        "difference": written.difference,
        "largest output": largest,
        "export CPU seconds": seconds,
        "share": shares["dropped"] / shares["kept"],
        "time": asdict(found),
    }


SWEEP = Sweep(
    "export",
    "models",
    plan=lambda: MODELS,
    last=lambda step: (" ".join(step),),
    measure=lambda step: [((" ".join(step),), measure(*step))],
    facts={
        "meaning": "ONNX Runtime, batch 1, one thread: time with all dropped over time with all kept, and "
        "MACs alike"
    },
)


def _sides(dyn: dc.DynamicModel) -> dict[str, Mapping[str, tuple[float, ...]]]:
    choices = {name: choice for name, choice in dyn.choices.items() if name in dyn.gated}
    return {
        "kept": {name: choice.full for name, choice in choices.items()},
        "dropped": {name: choice.smallest for name, choice in choices.items()},
    }


@torch.no_grad()
def _undecided(dyn: dc.DynamicModel, args: tuple[Any, ...]) -> dc.DynamicModel:
    """A copy with random gates and new state that is not neutral, so that routes differ between inputs."""
    dyn = copy.deepcopy(dyn)
    random = torch.Generator().manual_seed(0)
    for name, parameter in dyn.named_parameters():
        if name.startswith("dyn."):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))
    for name in dyn.exits:
        logits = dyn.record(*args, policy=dc.Learned()).logits[name]
        dyn.get_buffer(f"dyn.exits.{name}.threshold").add_(logits.mean())
    return dyn


def _session(path: Path, dyn: dc.DynamicModel, rows: Mapping[str, tuple[float, ...]]) -> Any:
    """Runs the file with gates that give these rows for any input."""
    onnx: Any = importlib.import_module("onnx")
    runtime: Any = importlib.import_module("onnxruntime")
    model = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, row in rows.items():
        if name in dyn.exits:
            forced, key = torch.tensor([FAR if row[0] == 0 else -FAR]), f"dyn.exits.{name}.threshold"
        else:
            forced, key = FAR * (2 * torch.tensor(row) - 1), f"dyn.gates.{name}.head.bias"
        if dyn.choices[name].domain is not dc.Domain.MIXTURE:
            tensors[key].CopyFrom(onnx.numpy_helper.from_array(forced.numpy(), key))
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = runtime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    (taken,) = (one.name for one in session.get_inputs())
    names = [one.name for one in session.get_outputs()]
    return lambda x: dict(zip(names, session.run(None, {taken: x}), strict=True))


def _macs(dyn: dc.DynamicModel, found: Mapping[str, Any]) -> float:
    """MACs of the route that a file reports, decisions included."""
    return float(dyn.spent({name: torch.as_tensor(found[f"route.{name}"]) for name in dyn.choices})[0])
