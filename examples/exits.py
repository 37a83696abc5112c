"""Easy images leave early: ``python -m examples.exits`` (needs scikit-learn)."""

from __future__ import annotations

import torch

import dyncompile as dc
from dyncompile.train import Optimization
from examples.digits import digits, measured, trained
from examples.picture import draw


def main(epochs: int = 6) -> None:
    """Train heads on the way; then set thresholds, by budget or by the accuracy that may be lost."""
    torch.set_num_threads(1)
    train, validation, test = digits()
    source = trained(train, epochs)
    dyn = dc.dynamize(source, "exits(at=(0.3, 0.7))", test.tensors[0][:2])
    before = measured(dyn, test, dc.Full())
    dc.fit(dyn, dc.recipes.exits(epochs=epochs, base=Optimization(rate=3e-3, decay=1e-2)), train, validation)
    points = {"source": before, "nobody leaves": measured(dyn, test, dc.Full())}
    for target in (0.85, 0.6):
        dc.calibrate_exit(dyn, [validation.tensors], target=target)
        points[f"budget {target:.0%}"] = measured(dyn, test, dc.Learned())
    dc.calibrate_exit(dyn, [validation.tensors], accuracy_drop=0.01)
    points["learned"] = measured(dyn, test, dc.Learned())
    draw("exits", "Early exits: easy digits leave", points, dyn, test)


if __name__ == "__main__":
    main()
