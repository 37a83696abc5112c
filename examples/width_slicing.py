"""Make a width dynamic, prove it, take narrow static networks out: ``python examples/width_slicing.py``."""

from __future__ import annotations

import torch
from torch import nn

import dyncompile as dc


def network() -> nn.Sequential:
    """A small CNN for 3x32x32 images."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def main() -> None:
    """Print the report, the contract, and what each width costs."""
    model, images = network(), torch.randn(8, 3, 32, 32)
    dyn = dc.dynamize(model, method="dsnet", example_inputs=images)
    print(dyn.explain())
    print(dc.verify(dyn, model, images))
    for column, label in enumerate(dyn.choices["width"].labels):
        route = dyn.route(column)
        static = dc.specialize(dyn, route)
        weights = sum(p.numel() for p in static.parameters())
        print(f"width {label}: {float(dyn.macs(route)[0]):,.0f} MACs, {weights:,} parameters")


if __name__ == "__main__":
    main()
