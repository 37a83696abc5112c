"""Cheaper alternatives beside every block, weighed per image: ``python -m examples.routing``.

Needs scikit-learn.
"""

from __future__ import annotations

import torch

import dyncompile as dc
from dyncompile.train import Optimization
from examples.digits import digits, measured, trained
from examples.picture import draw


def main(epochs: int = 4) -> None:
    """From a trained network to one whose routers spend seven tenths of the MACs."""
    torch.set_num_threads(1)
    train, validation, test = digits()
    source = trained(train, epochs)
    spec = "routing(candidates=('identity', 'separable3', 'narrow'), grid=2)"
    dyn = dc.dynamize(source, spec, test.tensors[0][:2])
    before = measured(dyn, test, dc.Full())
    recipe = dc.recipes.routing(
        target=0.7, joint_epochs=epochs, hard_epochs=2, base=Optimization(rate=3e-3, decay=1e-2)
    )
    dc.fit(dyn, recipe, train, validation)
    points = {
        "source": before,
        "originals alone": measured(dyn, test, dc.Full()),
        "learned": measured(dyn, test, dc.Learned()),
    }
    draw("routing", "Routing: alternatives to blocks per digit", points, dyn, test)


if __name__ == "__main__":
    main()
