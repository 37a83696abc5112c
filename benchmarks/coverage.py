"""Coverage beside peers: the reference models through dyncompile, NVIDIA ModelOpt and Torch-Pruning.

    python -m benchmarks.coverage [--only PATTERN] [--contender NAME] [--missing]

Defaults, the same call for every model, one process per model and contender with limits of time and memory;
the peers run in environments of their own (``make peers``). A model goes through all contenders before the
next one does, so that they meet the same load. ``results/coverage.json`` is written as results come.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from benchmarks.models import REFERENCE
from benchmarks.peers.__main__ import MEMORY, SECONDS
from benchmarks.record import read, write

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".data" / "peers"
PYTHON: Mapping[str, Path] = {
    "dyncompile": Path(sys.executable),
    "ModelOpt": PEERS / "nvidia-modelopt" / "bin" / "python",
    "Torch-Pruning": PEERS / "torch-pruning" / "bin" / "python",
}
LIMITS = {"CPU seconds": SECONDS, "bytes": MEMORY}
Rows = dict[str, dict[str, Any]]
"""Model -> contender -> outcome."""


def run() -> dict[str, Any]:
    """Measure every reference model; the figures of each contender."""
    return sweep(list(REFERENCE), list(PYTHON))


def sweep(names: list[str], contenders: list[str]) -> dict[str, Any]:
    """Measure these, keep the other results that there are; the figures of each contender."""
    torch.set_num_threads(1)  # as in the processes that measure
    models: Rows = read("coverage", "models")
    with ExitStack() as stack:
        open_ones = {contender: stack.enter_context(answering(contender)) for contender in contenders}
        for name in track(names, description="coverage", console=Console(stderr=True)):
            for contender, process in open_ones.items():
                models.setdefault(name, {})[contender] = ask(process, name)
            write("coverage", {"models": models, "limits": LIMITS, "meaning": MEANING})
    return {f"{c}, {what}": value for c in contenders for what, value in summary(models, c).items()}


@contextmanager
def answering(contender: str) -> Generator[subprocess.Popen[str]]:
    """The process in which a contender measures models."""
    command = [str(PYTHON[contender]), "-m", "benchmarks.peers", contender]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
        "text": True,
    }
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        yield process
        process.communicate()


def ask(process: subprocess.Popen[str], name: str) -> dict[str, Any]:
    """What a contender makes of a model. Raises RuntimeError if its process is gone."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{name}\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError(f"{process.args} does not start: has `make peers` been run?")
    return json.loads(answer)


def is_converted(one: Mapping[str, Any]) -> bool:
    """Whether something has a choice, and the smallest network runs."""
    return "error" not in one and not one["smallest"]


def summary(models: Rows, contender: str) -> dict[str, Any]:
    """The figures of one contender over all models; medians are over those that it converts."""
    rows = [found[contender] for found in models.values() if contender in found]
    good = [one for one in rows if is_converted(one)]
    return {
        "models": len(rows),
        "converted": len(good),
        "exact": _exact(good),
        "elastic": _median(one["elastic"] for one in good),
        "elastic over all": statistics.fmean(one["elastic"] if is_converted(one) else 0.0 for one in rows),
        "supernet over all": statistics.fmean(one["supernet"] if is_converted(one) else 0.0 for one in rows),
        "with blocks": sum(one["blocks"] > 0 for one in good),
        "blocks": sum(one["blocks"] for one in good),
        "skippable over all": statistics.fmean(one["skippable"] if is_converted(one) else 0 for one in rows),
        "seconds": _median(one["seconds"] for one in good),
    }


def _exact(rows: list[dict[str, Any]]) -> int | None:
    """How many equal the source bit for bit; None for a contender without a full width."""
    apart = [one["difference"] for one in rows if one["difference"] is not None]
    return sum(value == 0 for value in apart) if apart else None


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None


MEANING = {
    "converted": "the call returns, something has a choice, and the smallest network that the choices allow "
    "gives finite outputs of the source's shapes at a batch size that was not shown",
    "difference": "largest absolute difference to the source's output at full width",
    "elastic": "share of parameters in tensors of which a choice of widths keeps a part",
    "supernet": "the same where a contender is asked for a supernet, with nothing decided per sample; it is "
    "exact at full width, and its smallest network runs",
    "blocks": "blocks that can be dropped; skippable: share of parameters in them",
    "seconds": "CPU seconds of the call, one thread, after a first call on a small network",
}


def main() -> None:
    """Measure what is asked for, and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="regular expression on model names")
    parser.add_argument("--contender", choices=PYTHON, action="append", help="one of them (repeatable)")
    parser.add_argument("--missing", action="store_true", help="only models without results")
    options = parser.parse_args()
    contenders: list[str] = options.contender or list(PYTHON)
    known: Rows = read("coverage", "models") if options.missing else {}
    names = [name for name in REFERENCE if re.search(options.only, name)]
    names = [name for name in names if not set(contenders) <= set(known.get(name, {}))]
    for label, value in sweep(names, contenders).items():
        Console().print(f"{label}: {value}", highlight=False)


if __name__ == "__main__":
    main()
