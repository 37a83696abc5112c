"""The long sweep: every reference model and every Hugging Face class through capture, types and slicing.

    python -m benchmarks.zoo [--only PATTERN] [--workers 2] [--fresh]

One process per model, results in ``benchmarks/results/zoo.json`` as they come; a second call does what is
missing. What is measured, per model:

* exports: CPU seconds of the two bare exports, and of the whole `dynamize` as a ratio, in one process;
* inference: CPU seconds of the types' inference over both graphs, the best of three;
* eval, train: largest absolute difference to the source at full capacity, at two batch sizes that were not
  traced;
  the training step's output, gradients and buffers under the same seed;
* elastic: dims inferred, beside the reference count; covered: share of parameters in an elastic dim;
* valid: runs at independent random widths with every shape checked against its type;
* masked: relative difference between masking and slicing over the zero-equivalent dims.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import re
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from torch.utils import _pytree as pytree

from benchmarks.conversion import bare_exports
from benchmarks.models import HF_CLASSES, REFERENCE
from dyncompile import zoo
from dyncompile.analysis.dims.algebra import size
from dyncompile.analysis.dims.infer import infer
from dyncompile.analysis.dims.validate import random_widths, run_masked, run_narrowed, zero_equivalent
from dyncompile.analysis.facts import Facts, analyze
from dyncompile.capture import capture
from dyncompile.pipeline import apply_passes
from dyncompile.policies import Full
from dyncompile.program import Program
from dyncompile.runtime.model import DynamicModel
from dyncompile.spec import parse_specs
from dyncompile.verify import difference, scale

RESULTS = Path(__file__).parent / "results" / "zoo.json"
THOROUGH = (
    "resnet18",
    "mobilenet_v2",
    "densenet121",
    "shufflenet",
    "convnext_atto",
    "vit_tiny",
    "swin_tiny",
    "Bert",
    "GPT2",
    "Llama",
)
"""Ten kinds of network that get five draws of random widths instead of one."""


def main() -> None:
    """Run the sweep and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="regular expression on model names")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--fresh", action="store_true", help="measure anew what is asked for")
    options = parser.parse_args()
    names = [name for name in dict.fromkeys((*REFERENCE, *HF_CLASSES)) if re.search(options.only, name)]
    results = _read()
    todo = [name for name in names if options.fresh or "error" in results.get(name, {"error": ""})]
    for name, result in _measured(todo, options.workers):
        results[name] = result
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    Console(width=200).print(table({name: results[name] for name in names}))


def _read() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def _measured(names: list[str], workers: int) -> Iterable[tuple[str, dict[str, Any]]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    context = multiprocessing.get_context("spawn")
    with (
        Progress(*columns, console=Console(stderr=True)) as progress,
        ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1) as pool,
    ):
        task = progress.add_task("models", total=len(names))
        pending = {pool.submit(measure, name): name for name in names}
        for done in as_completed(pending):
            progress.update(task, advance=1, description=pending[done].split("?")[0])
            yield pending[done], done.result()


def measure(name: str) -> dict[str, Any]:
    """All figures of one model; an exception becomes an ``error`` entry that the table shows."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        return _measure(name)
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        return {"error": f"{type(error).__name__}: {error} ({Path(at.filename).name}:{at.lineno})"[:400]}


def _measure(name: str) -> dict[str, Any]:
    torch.manual_seed(0)
    torch.backends.mha.set_fastpath_enabled(False)
    source = zoo.load(name, batch=2)
    model = source.model
    zoo.randomize(model, 0, inputs=(source.args, source.kwargs))
    keys = list(model.state_dict())
    exports, _ = timed(lambda: bare_exports(model, source))
    seconds, (program, dyn) = timed(lambda: _dynamized(model, source))
    inference = min(timed(lambda: infer(program))[0] for _ in range(3))
    facts = analyze(program)
    draws = 5 if any(kind in name for kind in THOROUGH) else 1
    return {
        "nodes": len(program.graphs["train"].nodes),
        "export_seconds": round(exports, 2),
        "dynamize_ratio": round(seconds / exports, 3),
        "inference_seconds": round(inference, 3),
        "eval_difference": max(_eval_difference(model, dyn, source, rows) for rows in (3, 1)),
        **_train_difference(model, dyn, source),
        "same_keys": keys == [key for key in dyn.state_dict() if not key.startswith("dyn.")],
        "elastic": len(facts.dims.elastic),
        "reference": REFERENCE.get(name),
        "remark": _remark(facts, REFERENCE.get(name)),
        "covered": round(100 * facts.covered_parameters, 2),
        "zero_equivalent": len(zero_equivalent(facts)),
        "unknown": sorted({note.operator for note in facts.dims.unknown}),
        "gaps": len(facts.dims.gaps),
        "disagreements": len(facts.dims.disagreements),
        "branches": len(facts.regions.branches),
        "valid": [_valid(program, facts, source, seed) for seed in range(draws)],
        "masked": _masked_difference(program, facts, source),
        "smallest_macs": round(float(dyn.macs(dyn.route(0))[0]) / dyn.static_macs, 3),
        "sized": len(dyn.program.sized),
    }


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds of CPU, result) of one call: other work on the machine does not count."""
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def _dynamized(model: torch.nn.Module, source: zoo.Source) -> tuple[Program, DynamicModel]:
    """As `dynamize`, keeping the captured program for the checks on types."""
    program = capture(model, source.args, source.kwargs)
    return program, DynamicModel(
        apply_passes(program, parse_specs("dsnet(embedding=True, minimum=1, divisor=1)", {}))
    )


def _rows(source: zoo.Source, rows: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    torch.manual_seed(rows)

    def grow(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        more = torch.cat([value] * 2)[:rows].clone()
        return more + 0.1 * torch.randn_like(more) if more.is_floating_point() else more

    return tuple(map(grow, source.args)), {k: grow(v) for k, v in source.kwargs.items()}


def _eval_difference(model: torch.nn.Module, dyn: DynamicModel, source: zoo.Source, rows: int) -> float:
    args, kwargs = _rows(source, rows)
    with torch.no_grad():
        return difference(model.eval()(*args, **kwargs), dyn.eval().run(*args, policy=Full(), **kwargs)[0])


def _train_difference(model: torch.nn.Module, dyn: DynamicModel, source: zoo.Source) -> dict[str, float]:
    """One training step on copies of both, at a batch size that was not traced."""
    eager, ours = copy.deepcopy(model).train(), copy.deepcopy(dyn).train()
    args, kwargs = _rows(source, 3)
    expected = _step(lambda: eager(*args, **kwargs))
    actual = _step(lambda: ours.run(*args, policy=Full(), **kwargs)[0])
    gradients = {n: p.grad for n, p in eager.named_parameters()}
    buffers = dict(ours.named_buffers())
    return {
        "train_difference": difference(expected, actual),
        "gradient_difference": difference(
            gradients, {n: p.grad for n, p in ours.named_parameters() if n in gradients}
        ),
        "buffer_difference": max(
            [difference(b, buffers[n]) for n, b in eager.named_buffers() if n in buffers] or [0.0]
        ),
    }


def _step(run: Callable[[], Any]) -> Any:
    torch.manual_seed(7)
    out = run()
    floats = [v for v in pytree.tree_leaves(out) if isinstance(v, torch.Tensor) and v.requires_grad]
    torch.stack([v.float().square().mean() for v in floats]).sum().backward()
    return out


def _flat(program: Program, source: zoo.Source) -> list[Any]:
    args, kwargs = _rows(source, 3)
    return program.signature.flatten(args, kwargs)


def _valid(program: Program, facts: Facts, source: zoo.Source, seed: int) -> str:
    """Empty if a run at random widths has every shape that its type says and finite outputs."""
    try:
        with torch.no_grad():
            outs = run_narrowed(program, facts, random_widths(facts, seed), _flat(program, source))
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    finite = all(bool(v.isfinite().all()) for v in outs if isinstance(v, torch.Tensor))
    return "" if finite else "not finite"


def _masked_difference(program: Program, facts: Facts, source: zoo.Source) -> float | None:
    """Relative difference of masking and slicing; None where no dim is zero-equivalent."""
    names = zero_equivalent(facts)
    if not names:
        return None
    widths = random_widths(facts, 0, only=names)
    flat = _flat(program, source)
    with torch.no_grad():
        sliced, masked = run_narrowed(program, facts, widths, flat), run_masked(program, facts, widths, flat)
    return difference(masked, sliced) / scale(list(masked))


def _remark(facts: Facts, reference: int | None) -> str:
    """Why the number of elastic dims differs from the reference, and why parameters are not covered."""
    remarks: list[str] = []
    if reference is not None and reference != len(facts.dims.elastic):
        unread = ", ".join(facts.dims.unread)
        remarks.append(f"no graph reads, so frozen here and free there: {unread}" if unread else "differs")
    if facts.covered_parameters < 0.997:
        remarks += [f"{share:.1%} of parameters: {reason}" for reason, share in _uncovered(facts)]
    return "; ".join(remarks)


def _uncovered(facts: Facts) -> list[tuple[str, float]]:
    """(reason, share of parameters) of those without an elastic dim, by their longest axis."""
    total, shares = sum(facts.parameters.values()), Counter[str]()
    for name, numel in facts.parameters.items():
        axes = [axis for axis in facts.dims.frozen if axis.tensor == name]
        if axes and not facts.elastics_of(name):
            shares[max(axes, key=lambda axis: size(facts.dims.state[name][axis.axis])).reason] += numel
    return [(reason, numel / total) for reason, numel in shares.most_common(2)]


def table(results: dict[str, dict[str, Any]]) -> Table:
    """One line per model, failures in words, totals at the end."""
    out = Table(
        title=f"{len(results)} models",
        caption="differences are maxima of absolute values; masked is relative",
    )
    heads = (
        "model",
        "elastic (ref)",
        "covered %",
        "branches",
        "eval",
        "train",
        "grad",
        "buf",
        "keys",
        "valid",
        "masked",
        "infer s",
        "dynamize/exports",
        "smallest MACs",
        "remark",
    )
    for head in heads:
        out.add_column(head, overflow="fold")
    for name, r in results.items():
        out.add_row(name.split("?")[0], *_cells(r))
    return out


def _cells(r: dict[str, Any]) -> list[str]:
    if "error" in r:
        return [""] * 13 + [r["error"]]
    numbers = [
        f"{r[k]:.2g}"
        for k in ("eval_difference", "train_difference", "gradient_difference", "buffer_difference")
    ]
    bad = [v for v in r["valid"] if v]
    return [
        f"{r['elastic']} ({r['reference'] if r['reference'] is not None else '-'})",
        f"{r['covered']:.1f}",
        str(r["branches"]),
        *numbers,
        "ok" if r["same_keys"] else "NO",
        bad[0] if bad else f"{len(r['valid'])} ok",
        "-" if r["masked"] is None else f"{r['masked']:.1g}",
        f"{r['inference_seconds']:.2f}",
        f"{r['dynamize_ratio']:.2f}",
        f"{r['smallest_macs']:.3f}",
        r["remark"],
    ]


if __name__ == "__main__":
    main()
