"""Layers with a kernel per sample: ours beside timm's CondConv2d at equal shapes and N, and the static layer.

timm mixes N whole kernels. Ours are W0 and N differences as long as they are trained, one more kernel to
read; deployed, with coefficients that sum to one, they are N whole kernels, too (`deploy.packing`). Both
stand beside timm's at equal N, the trained form also beside timm's with N + 1. All are timed in turns, with
the same coefficients, and glibc keeps what is freed: else page faults of large kernels cost now the one and
now the other, by what ran before.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.memory import keep_memory
from benchmarks.record import write
from dyncompile.latency import time_in_turns
from dyncompile.program import Decision
from dyncompile.runtime.synthesis import basis_conv2d, synthesize
from dyncompile.zoo.third_party import third_party

BASES = 4
ROUNDS = {1: 401, 8: 101, 32: 41}


@dataclass(frozen=True)
class Shape:
    """A convolution on square maps."""

    channels: int
    outputs: int
    kernel: int
    side: int
    stride: int = 1
    groups: int = 1


SHAPES = {
    "3x3, 64 at 28": Shape(64, 64, 3, 28),
    "3x3, 128 at 14": Shape(128, 128, 3, 14),
    "3x3, 256 at 7": Shape(256, 256, 3, 7),
    "1x1, 64 to 128 at 28": Shape(64, 128, 1, 28),
    "1x1, 256 to 64 at 14": Shape(256, 64, 1, 14),
    "depthwise 3x3, 256 at 14": Shape(256, 256, 3, 14, groups=256),
    "depthwise 5x5, 128 at 28, stride 2": Shape(128, 128, 5, 28, stride=2, groups=128),
}


COMPARED = {
    "condconv": ("deployed", "theirs"),
    "trained": ("trained", "theirs"),
    "equal_kernels": ("trained", "larger"),
    "static": ("deployed", "static"),
}
"""Which of the layers below is put over which."""


def run() -> dict[str, Any]:
    """Times over timm's and over the static layer's, per shape and batch; below 1 ours is faster."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    keep_memory()
    with torch.inference_mode():
        results = {
            name: {str(rows): _measure(shape, rows) for rows in ROUNDS} for name, shape in SHAPES.items()
        }
    meaning = (
        "evaluation time of our per-sample layer over timm's CondConv2d: deployed (condconv) and as trained "
        "(trained) at equal N, as trained at N + 1 (equal_kernels); deployed over the static layer"
    )
    write("synthesis", {"bases": BASES, "layers": results, "meaning": meaning})
    return {
        f"{name}, batch {rows}": f"{found['condconv']['cpu']['median']:.2f} of CondConv2d deployed, "
        f"{found['trained']['cpu']['median']:.2f} as trained, "
        f"{found['equal_kernels']['cpu']['median']:.2f} of it with {BASES + 1} kernels, "
        f"{found['static']['cpu']['median']:.2f} of the static layer"
        for name, by_batch in results.items()
        for rows, found in by_batch.items()
    }


def _measure(shape: Shape, batch: int) -> dict[str, Any]:
    layers = _layers(shape, batch)
    times = time_in_turns(layers, ROUNDS[batch])
    return {name: asdict(times[one].over(times[other])) for name, (one, other) in COMPARED.items()}


def _layers(shape: Shape, batch: int) -> dict[str, Callable[[], Tensor]]:
    """Calls on one input; those of ours are checked against static layers of every row's kernel."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, shape.channels, shape.side, shape.side, generator=generator)
    rows, wider = (torch.rand(batch, BASES + more, generator=generator).softmax(1) for more in (0, 1))
    sizes = (shape.channels, shape.outputs, shape.kernel, shape.stride, shape.kernel // 2)
    static = nn.Conv2d(*sizes, groups=shape.groups, bias=False)
    layers: Any = third_party("timm").layers
    theirs, larger = (
        layers.CondConv2d(*sizes, groups=shape.groups, bias=False, num_experts=BASES + more)
        for more in (0, 1)
    )
    bases = 0.1 * torch.randn(BASES, *static.weight.shape, generator=generator)
    whole, weight, decision = static.weight + bases, static.weight, Decision(rows, -1)
    stride, padding = [shape.stride] * 2, [shape.kernel // 2] * 2

    def ours(mixed: Tensor, is_whole: bool) -> Tensor:
        kernels = synthesize(weight, mixed, decision, 0, 0.0, is_whole)
        return basis_conv2d(x, kernels, None, stride, padding, [1, 1], shape.groups)

    check = torch.cat([_alone(static, bases, row, x[i : i + 1]) for i, row in enumerate(rows)])
    for mixed, is_whole in ((bases, False), (whole, True)):
        torch.testing.assert_close(ours(mixed, is_whole), check, rtol=1e-3, atol=1e-4)
    return {
        "deployed": lambda: ours(whole, True),
        "trained": lambda: ours(bases, False),
        "theirs": lambda: theirs(x, rows),
        "larger": lambda: larger(x, wider),
        "static": lambda: static(x),
    }


def _alone(static: nn.Conv2d, bases: Tensor, row: Tensor, x: Tensor) -> Tensor:
    """The layer of one sample as a static one."""
    kernel = static.weight + torch.einsum("n,n...->...", row, bases)
    return torch.conv2d(x, kernel, None, static.stride, static.padding, static.dilation, static.groups)  # pyright: ignore
