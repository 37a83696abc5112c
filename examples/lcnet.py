"""Skip layers and channels per image: ``python -m examples.lcnet`` (needs scikit-learn)."""

from __future__ import annotations

import torch

import dyncompile as dc
from dyncompile.train import Optimization
from examples.digits import digits, measured, trained
from examples.picture import draw


def main(epochs: int = 12) -> None:
    """From a trained network to one that spends three fifths of the MACs."""
    torch.set_num_threads(1)
    train, validation, test = digits()
    source = trained(train, epochs)
    dyn = dc.dynamize(source, "lcnet(grid=2)", test.tensors[0][:2])
    before = measured(dyn, test, dc.Full())
    base, gates = Optimization(rate=3e-3, decay=1e-2), Optimization(rate=3e-3)
    recipe = dc.recipes.lcnet(target=0.6, joint_epochs=epochs, base=base, gates=gates)
    dc.fit(dyn, recipe, train, validation)
    points = {"source": before, "learned": measured(dyn, test, dc.Learned())}
    draw("lcnet", "LC-Net: layers and channels per digit", points, dyn, test)


if __name__ == "__main__":
    main()
