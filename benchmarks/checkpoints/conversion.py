"""Every checkpoint by every method: what holds, and what it takes."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

import dyncompile as dc
from benchmarks.checkpoints.subjects import SUBJECTS, Subject
from benchmarks.record import read, write
from dyncompile.foreign import load_state, read_state_dict
from dyncompile.program import Domain
from dyncompile.zoo.inputs import as_inputs

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
        path, began = dc.save(dyn, folder), time.process_time()
        loaded = dc.load(path)  # from its files alone
        loading = time.process_time() - began
    return {
        "largest difference after loading": _apart(dyn, loaded, one.example),
        "CPU seconds to load": round(loading, 1),
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


@torch.no_grad()
def _apart(dyn: dc.DynamicModel, loaded: dc.DynamicModel, example: Any) -> float:
    """0 where policies, and all columns of one-hot choices, give the bits that they gave before saving."""
    args, kwargs = as_inputs(example)
    rows = len(next(iter((*args, *kwargs.values()))))
    policies = (dc.Full(), dc.Smallest(), dc.Learned(), dc.Sampled(0), *map(dc.Forced, _columns(dyn, rows)))
    outputs = ([_named(one.run(*args, policy=p, **kwargs)[0]) for one in (dyn, loaded)] for p in policies)
    return max(float((a[name] - b[name]).abs().max()) for a, b in outputs for name in b)


def _columns(dyn: dc.DynamicModel, rows: int) -> Iterator[dc.Route]:
    """One-hot choices at every column, others at full."""
    one_hot = {name: one for name, one in dyn.choices.items() if one.domain is Domain.ONE_HOT}
    full = {name: torch.tensor([one.full]) for name, one in dyn.choices.items()}
    for i in range(max((one.width for one in one_hot.values()), default=0)):
        picked = {name: torch.tensor([one.row(min(i, one.width - 1))]) for name, one in one_hot.items()}
        yield {name: row.expand(rows, -1) for name, row in {**full, **picked}.items()}


def _named(output: Any) -> Mapping[str, Tensor]:
    """Tensors of an output; a model that was loaded from its graph returns dicts in place of classes."""
    return output if isinstance(output, Mapping) else {"": output}


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
    """0 where both give the same bits."""
    args, kwargs = as_inputs(example)
    expected, found = _named(model(*args, **kwargs)), _named(dyn.run(*args, policy=dc.Full(), **kwargs)[0])
    return max(float((expected[key] - value).abs().max()) for key, value in found.items())


def _scores(model: nn.Module, dyn: dc.DynamicModel, one: Subject) -> dict[str, Any]:
    if one.score is None:
        return {}
    return {
        "task": one.score.task,
        "samples": one.score.samples,
        "score of the source": one.score.share(model),
        "score at full": one.score.share(lambda *args, **named: dyn.run(*args, policy=dc.Full(), **named)[0]),
    }
