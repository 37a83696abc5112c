"""Kernels mixed per image after a preview, which may answer itself: ``python -m examples.basisnet``.

Needs scikit-learn.
"""

from __future__ import annotations

import torch

import dyncompile as dc
from dyncompile.train import Optimization
from examples.digits import digits, measured, trained
from examples.picture import draw


def main(epochs: int = 6) -> None:
    """Train preview and bases; then let the preview answer wherever that loses no validation digit."""
    torch.set_num_threads(1)
    train, validation, test = digits(pixels=16)
    source = trained(train, epochs)
    dyn = dc.dynamize(source, "basisnet(bases=4, width=0.5, resolution=0.5)", test.tensors[0][:2])
    before = measured(dyn, test, dc.Full())
    recipe = dc.recipes.basisnet(epochs=epochs, base=Optimization(rate=3e-3, decay=1e-2))
    dc.fit(dyn, recipe, train, validation)
    points = {"source": before, "mixed, nobody leaves": measured(dyn, test, dc.Learned())}
    dc.calibrate_exit(dyn, [validation.tensors], accuracy_drop=0.0)
    points["learned"] = measured(dyn, test, dc.Learned())
    draw("basisnet", "BasisNet: a preview answers the easy digits", points, dyn, test)


if __name__ == "__main__":
    main()
