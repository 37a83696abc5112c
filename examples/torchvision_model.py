"""A model of torchvision: slice its widths, take the narrowest network out for deployment.

``python examples/torchvision_model.py``
"""

from __future__ import annotations

import torch

import dyncompile as dc
from dyncompile import zoo


def main(name: str = "torchvision:shufflenet_v2_x0_5?num_classes=10") -> None:
    """Print costs of the widths, and that the static network agrees with the dynamic one."""
    source = zoo.load(name)  # beside a CPU-only torch, too
    images = torch.randn(2, 3, 64, 64)
    dyn = dc.dynamize(source.model, method="dsnet(gate=False)", example_inputs=images).eval()
    for column, label in enumerate(dyn.choices["width"].labels):
        static = dc.specialize(dyn, dyn.route(column))
        with torch.no_grad():
            expected, _ = dyn.run(images, policy=dc.Forced(dyn.route(column, rows=2)))
            agrees = torch.allclose(static(images), expected, atol=1e-5)
        print(f"width {label}: {float(dyn.macs(dyn.route(column))[0]):,.0f} MACs, agrees: {agrees}")


if __name__ == "__main__":
    main()
