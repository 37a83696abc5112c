"""Train a network that picks its own width for every image: ``python examples/train_gates.py`` (a minute).

Needs scikit-learn for its handwritten digits.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits  # pyright: ignore[reportMissingTypeStubs]
from torch import nn
from torch.utils.data import Subset, TensorDataset

import dyncompile as dc
from dyncompile.train import Optimization


def network() -> nn.Sequential:
    """A small CNN for 1x8x8 images."""
    layers: list[nn.Module] = []
    for width, out in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(width, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def main(epochs: int = 10) -> None:
    """Print accuracy and cost of every width and of the learned choice."""
    torch.manual_seed(0)
    images, labels = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    data = TensorDataset(images.float().view(-1, 1, 8, 8) / 16, labels.long())
    train, validation, test = (Subset(data, range(*ends)) for ends in ((0, 1200), (1200, 1500), (1500, 1797)))
    dyn = dc.dynamize(network(), method="dsnet(grid=4)", example_inputs=data.tensors[0][:2])
    recipe = dc.recipes.dsnet(
        target=0.5,
        supernet_epochs=epochs,
        gate_epochs=epochs,
        average=None,
        sparsification="worth",
        base=Optimization(rate=5e-3, decay=1e-2),
    )
    dc.fit(dyn, recipe, train, validation)
    x, y = test[:]
    policies = {label: dc.Forced(dyn.route(i)) for i, label in enumerate(dyn.choices["width"].labels)}
    for name, policy in {**policies, "learned": dc.Learned()}.items():
        with torch.no_grad():
            output, route = dyn.eval().run(x, policy=policy)
        share = float(dyn.macs(route).mean()) / dyn.static_macs
        print(f"{name:>8}: {float((output.argmax(1) == y).float().mean()):.1%} at {share:.0%} of the MACs")


if __name__ == "__main__":
    main()
