"""Every checkpoint by every method: what holds, and what it takes."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dyncompile as dc
from benchmarks.checkpoints.subjects import SUBJECTS, Subject
from benchmarks.record import read, write
from dyncompile.foreign import load_state, read_state_dict

METHODS = ("dsnet", "dsnet(gate=False)", "lcnet", "routing", "resolution", "basisnet", "exits")


def run(names: list[str] | None = None) -> dict[str, Any]:
    """Figures per checkpoint and method, of the named subjects, or of the named methods on all subjects.

    ``results/checkpoints.json`` is written after every one of them; those of others stay in it.
    """
    subjects = [name for name in names or () if name in SUBJECTS] or list(SUBJECTS)
    methods = [name for name in names or () if name not in SUBJECTS] or METHODS
    figures = _known()
    for name, method in product(subjects, methods):
        figures[f"{name} {method}"] = found = _checked(SUBJECTS[name](), method)
        print(f"{name} {method}: {found}", file=sys.stderr, flush=True)
        write("checkpoints", {"checkpoints": figures})
    return figures


def _known() -> dict[str, Any]:
    """Earlier figures by the same release of torch."""
    same = read("checkpoints", "machine").get("torch") == torch.__version__
    return read("checkpoints", "checkpoints") if same else {}


def _checked(one: Subject, method: str) -> dict[str, Any]:
    began = time.process_time()
    state = read_state_dict(one.file)
    model = one.build().eval()
    load_state(model, state)
    try:
        dyn = dc.dynamize(model, method, one.example).eval()
    except (dc.NoSiteError, dc.CaptureError) as error:  # it does not apply; anything else ends the run
        return {"refused": _reason(error)}
    report = dc.verify(dyn, model, one.example)
    seconds = time.process_time() - began
    with tempfile.TemporaryDirectory() as folder:
        loaded, alone = _reloaded(dyn, Path(folder), one)
    return {
        "loads without the source": alone,
        "keys": len(dc.reduce_to_source(loaded)),
        "parameters": sum(p.numel() for p in model.parameters()),
        "MACs": dyn.static_macs,
        "choices": len(dyn.choices),
        "invariants": len(report.checks),
        "smallest share of MACs": float(dyn.macs(_smallest(dyn))[0]) / dyn.static_macs,
        "file reduced back bit for bit": _is_reduced(loaded, model, state),
        "largest difference of outputs at full": _difference(model, loaded, one.example),
        **_scores(model, loaded, one),
        "CPU seconds to convert and verify": round(seconds, 1),
    }


def _reloaded(dyn: dc.DynamicModel, folder: Path, one: Subject) -> tuple[dc.DynamicModel, bool]:
    """The saved model, and whether it needs nothing but its folder: other image sizes need the source."""
    path = dc.save(dyn, folder)
    try:
        return dc.load(path), True
    except dc.CheckpointError:
        return dc.load(path, one.build()), False


def _reason(error: dc.DyncompileError) -> str:
    """The first of the reasons that an error lists, else its problem."""
    listed = [line.removeprefix("  - ") for line in error.problem.splitlines() if line.startswith("  - ")]
    return listed[0] if listed else error.problem


def _smallest(dyn: dc.DynamicModel) -> dc.Route:
    return {name: torch.tensor([choice.smallest]) for name, choice in dyn.choices.items()}


def _is_reduced(dyn: dc.DynamicModel, model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether the source's names, in their order, have the file's values.

    A file may hold a buffer besides that the model makes itself.
    """
    reduced = dc.reduce_to_source(dyn)
    return list(reduced) == list(model.state_dict()) and all(
        torch.equal(value, state[name]) for name, value in reduced.items()
    )


@torch.no_grad()
def _difference(model: nn.Module, dyn: dc.DynamicModel, example: Any) -> float:
    """0 where both give the same bits; a model that was loaded from its graph returns dicts."""
    if isinstance(example, dict):
        expected, found = model(**example), dyn.run(policy=dc.Full(), **example)[0]
        return max(float((expected[key] - value).abs().max()) for key, value in found.items())
    return float((model(example) - dyn.run(example, policy=dc.Full())[0]).abs().max())


def _scores(model: nn.Module, dyn: dc.DynamicModel, one: Subject) -> dict[str, Any]:
    if one.score is None:
        return {}
    return {
        "task": one.score.task,
        "samples": one.score.samples,
        "score of the source": one.score.share(model),
        "score at full": one.score.share(lambda *args, **named: dyn.run(*args, policy=dc.Full(), **named)[0]),
    }
