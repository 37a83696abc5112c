"""What `dynamize` costs by number of nodes, and by number of parameters on the meta device.

Beside it stand the two bare exports that it needs. Every network is measured in a process of its own, so that
peaks of memory are its own; results are written as they come, small networks first.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

import dyncompile as dc
from benchmarks.conversion import bare_exports
from benchmarks.record import RESULTS
from benchmarks.scaling_figure import figure
from benchmarks.scaling_nets import resnet, transformer
from benchmarks.sweep import Place, Sweep
from dyncompile.zoo import Source

METHODS = ("dsnet", "lcnet(channels=False)")


@dataclass(frozen=True)
class Size:
    """A network, its depth and width, where its weights lie, and a method."""

    network: str
    depth: int
    width: int
    device: str
    method: str

    def source(self) -> Source:
        """The network with inputs of two samples."""
        with torch.device(self.device):
            if self.network == "resnet":
                model: nn.Module = resnet(self.depth, self.width)
                inputs = torch.randn(2, 3, 8, 8)
            else:
                model = transformer(self.depth, self.width, heads=max(self.width // 64, 2))
                inputs = torch.randn(2, 4, 16)
        return Source(f"{self.network} {self.depth}x{self.width}", model.eval(), (inputs,), {})


DEPTHS = {"resnet": (8, 32, 128, 480), "transformer": (8, 32, 128, 340)}
"""Up to 10,000 nodes in the training graph."""
WIDTHS = (256, 1024, 2048, 4096)
"""A transformer of five layers on the meta device: up to a billion parameters."""


def plan() -> Iterator[Size]:
    """Small ones first."""
    for level in range(4):
        for network, depths in DEPTHS.items():
            for method in METHODS:
                yield Size(network, depths[level], 16 if network == "resnet" else 32, "cpu", method)
        yield Size("transformer", 5, WIDTHS[level], "meta", METHODS[0])


def _place(row: Mapping[str, Any]) -> Place:
    """By what a `Size` says."""
    return (f"{row['network']} {row['depth']}x{row['width']} {row['device']} {row['method']}",)


def run() -> dict[str, Any]:
    """Measure all sizes; seconds and the growth of memory of each."""
    return lines(SWEEP.run())


def missing() -> dict[str, Any]:
    """The same, leaving out sizes that have results."""
    return lines(SWEEP.missing())


def lines(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Figures, one line per size."""
    return {
        f"{one['network']} {one['nodes']} nodes, {one['parameters'] / 1e6:.1f} M, {one['method']}": (
            f"{one['seconds']:.1f} s, exports {one['exports']:.1f} s, {one['memory'] / 2**20:.0f} MiB"
        )
        for one in rows.values()
    }


def _alone(size: Size) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Measured in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        yield _place(asdict(size)), pool.submit(measure, size).result()


def measure(size: Size) -> dict[str, Any]:
    """CPU seconds of `dynamize` and of both exports, and what the peak of memory grew by."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dc.dynamize(resnet(1), size.method, torch.randn(2, 3, 8, 8))  # imports and tables that are filled once
    source = size.source()
    before, start = _peak(), time.process_time()
    dyn = dc.dynamize(source.model, size.method, source.args)
    seconds, memory = time.process_time() - start, _peak() - before
    start = time.process_time()
    bare_exports(source.model, source)
    return {
        **asdict(size),
        "nodes": len(dyn.program.origin["train"].nodes),
        "parameters": sum(p.numel() for p in source.model.parameters()),
        "choices": len(dyn.choices),
        "seconds": round(seconds, 2),
        "exports": round(time.process_time() - start, 2),
        "memory": memory,
    }


def _peak() -> int:
    """Bytes of the largest resident set so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


MEANING = {
    "seconds": "CPU time of dynamize, one thread, after a first call on a small network",
    "exports": "CPU time of the two bare calls of torch.export that it needs",
    "nodes": "of the source's training graph, reads of state included",
    "memory": "bytes that the peak of the resident set grew by during dynamize",
}

SWEEP = Sweep(
    "scaling",
    "rows",
    plan=lambda: [*plan()],
    last=lambda size: _place(asdict(size)),
    measure=_alone,
    facts={"meaning": MEANING},
    load=lambda rows: {_place(row)[0]: row for row in rows},
    dump=lambda rows: [*rows.values()],
    written=lambda rows: (RESULTS / "scaling.svg").write_text(figure([*rows.values()])),
)
