"""A network that picks its own width for every image: ``python -m examples.dsnet`` (needs scikit-learn)."""

from __future__ import annotations

import torch

import dyncompile as dc
from dyncompile.train import Optimization
from examples.digits import digits, measured, trained
from examples.picture import draw


def main(epochs: int = 15) -> None:
    """From a trained network to all its widths, and to a gate that spends half of the MACs."""
    torch.set_num_threads(1)
    train, validation, test = digits()
    source = trained(train, 10)
    dyn = dc.dynamize(source, "dsnet(divisor=4, minimum=4, grid=4)", test.tensors[0][:2])
    base = Optimization(rate=5e-3, decay=1e-2)
    recipe = dc.recipes.dsnet(target=0.5, supernet_epochs=epochs, gate_epochs=max(1, epochs // 3), base=base)
    dc.fit(dyn, recipe, train, validation)
    widths = {f"width {label}": dyn.route(i) for i, label in enumerate(dyn.choices["width"].labels)}
    points = {name: measured(dyn, test, dc.Forced(route)) for name, route in widths.items()}
    points["learned"] = measured(dyn, test, dc.Learned())
    draw("dsnet", "DS-Net: a width per digit", points, dyn, test)


if __name__ == "__main__":
    main()
