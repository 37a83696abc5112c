"""A size for every image, picked by a small net: ``python -m examples.resolution`` (needs scikit-learn)."""

from __future__ import annotations

import torch

import dyncompile as dc
from dyncompile.train import Optimization
from examples.digits import digits, measured
from examples.digits import network as build
from examples.picture import draw


def main(epochs: int = 3) -> None:
    """Three sizes share one network; batch norms are private. Then the predictor learns to pick."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    train, validation, test = digits(pixels=16)
    dyn = dc.dynamize(build(), "resolution(sizes=(8, 12))", test.tensors[0][:2])
    recipe = dc.recipes.resolution(
        target=0.5, pretrain_epochs=epochs, joint_epochs=epochs, base=Optimization(rate=5e-3, decay=1e-2)
    )
    dc.fit(dyn, recipe, train, validation)
    (choice,) = dyn.choices.values()
    points = {
        f"{label} pixels": measured(dyn, test, dc.Forced(dyn.route(column)))
        for column, label in enumerate(choice.labels)
    }
    points["learned"] = measured(dyn, test, dc.Learned())
    draw("resolution", "Resolution: a size per digit", points, dyn, test)


if __name__ == "__main__":
    main()
