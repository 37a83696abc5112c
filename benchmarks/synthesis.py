"""Layers with a kernel per sample: ours beside timm's CondConv2d at equal shapes and N, and the static layer.

timm mixes N whole kernels, ours are W0 and N differences: one more kernel to read. Beside timm's at equal N
stands timm's with N + 1, which holds as many kernels as ours.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.record import write
from dyncompile.latency import compare
from dyncompile.program import Decision
from dyncompile.runtime.synthesis import basis_conv2d, synthesize
from dyncompile.zoo.third_party import third_party

BASES = 4
PAIRS = {1: 301, 8: 61, 32: 21}


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


def run() -> dict[str, Any]:
    """Times over timm's and over the static layer's, per shape and batch; below 1 ours is faster."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with torch.inference_mode():
        results = {
            name: {str(rows): _measure(shape, rows) for rows in PAIRS} for name, shape in SHAPES.items()
        }
    meaning = (
        "evaluation time of our per-sample layer over timm's CondConv2d at equal N (condconv), at N + 1 "
        "(equal_kernels), and over the static layer"
    )
    write("synthesis", {"bases": BASES, "layers": results, "meaning": meaning})
    return {
        f"{name}, batch {rows}": f"{found['condconv']['cpu']['median']:.2f} of CondConv2d, "
        f"{found['equal_kernels']['cpu']['median']:.2f} of it with {BASES + 1} kernels, "
        f"{found['static']['cpu']['median']:.2f} of the static layer"
        for name, by_batch in results.items()
        for rows, found in by_batch.items()
    }


def _measure(shape: Shape, batch: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, shape.channels, shape.side, shape.side, generator=generator)
    rows = torch.rand(batch, BASES, generator=generator)
    sizes = (shape.channels, shape.outputs, shape.kernel, shape.stride, shape.kernel // 2)
    static = nn.Conv2d(*sizes, groups=shape.groups, bias=False)
    layers: Any = third_party("timm").layers
    theirs, larger = (
        layers.CondConv2d(*sizes, groups=shape.groups, bias=False, num_experts=BASES + more)
        for more in (0, 1)
    )
    wider = torch.rand(batch, BASES + 1, generator=generator)
    bases = 0.1 * torch.randn(BASES, *static.weight.shape, generator=generator)
    stride, padding = [shape.stride] * 2, [shape.kernel // 2] * 2
    decision, weight = Decision(rows, -1), static.weight

    def ours() -> Tensor:
        kernels = synthesize(weight, bases, decision, 0, 0.0)
        return basis_conv2d(x, kernels, None, stride, padding, [1, 1], shape.groups)

    check = torch.stack([_alone(static, bases, row, x[i : i + 1]) for i, row in enumerate(rows)])
    torch.testing.assert_close(ours(), check.flatten(0, 1), rtol=1e-3, atol=1e-4)
    return {
        "condconv": asdict(compare(ours, lambda: theirs(x, rows), PAIRS[batch])),
        "equal_kernels": asdict(compare(ours, lambda: larger(x, wider), PAIRS[batch])),
        "static": asdict(compare(ours, lambda: static(x), PAIRS[batch])),
    }


def _alone(static: nn.Conv2d, bases: Tensor, row: Tensor, x: Tensor) -> Tensor:
    """The layer of one sample as a static one."""
    kernel = static.weight + torch.einsum("n,n...->...", row, bases)
    return torch.conv2d(x, kernel, None, static.stride, static.padding, static.dilation, static.groups)  # pyright: ignore
