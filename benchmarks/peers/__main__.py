"""``python -m benchmarks.peers CONTENDER``: reads names of models, answers with outcomes, as lines of JSON.

The contender's library is imported once. Every model is measured in a fork of its own with limited CPU time
and memory: what hangs or crashes ends alone.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.peers.subject import Contender, measure, small
from dyncompile.zoo.third_party import third_party

FUNCTIONS: Mapping[str, tuple[str, str]] = {
    "dyncompile": ("ours", "convert"),
    "ModelOpt": ("modelopt", "convert"),
    "Torch-Pruning": ("torch_pruning", "convert"),
}
SECONDS = 150
"""CPU time that a model may take."""
MEMORY = 10 * 2**30
"""Bytes of address space."""
FORK = multiprocessing.get_context("fork")


def main() -> None:
    """Answer until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=FUNCTIONS)
    module, function = FUNCTIONS[parser.parse_args().contender]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print as they like
    torch.set_num_threads(1)
    for library in ("torchvision", "timm", "transformers"):  # once, not in every fork
        third_party(library)
    convert: Contender = getattr(importlib.import_module(f"benchmarks.peers.{module}"), function)
    convert(small(), (torch.randn(2, 3, 32, 32),), {})  # imports and tables that are filled once
    for line in sys.stdin:
        answers.write(json.dumps(apart(line.strip(), convert)) + "\n")
        answers.flush()


def apart(name: str, convert: Contender) -> dict[str, Any]:
    """`measure` in a fork."""
    reader, writer = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_limited, args=(name, convert, writer))
    process.start()
    writer.close()
    try:
        found = reader.recv()
    except EOFError:
        found = None
    process.join()
    if found is not None:
        return found
    late = process.exitcode == -signal.SIGXCPU
    return {"error": f"not done after {SECONDS} s of CPU time" if late else f"exit code {process.exitcode}"}


def _limited(name: str, convert: Contender, writer: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    writer.send(measure(name, convert))


if __name__ == "__main__":
    main()
