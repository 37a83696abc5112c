"""What the examples share: scikit-learn's handwritten digits, a small trained network, accuracy and cost."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import dyncompile as dc
from dyncompile.demo.digits import load_digits
from dyncompile.demo.network import Block
from dyncompile.policies import Policy


def digits(pixels: int = 8) -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """Training, validation and test images [N, 1, pixels, pixels] with labels [N]."""
    found = load_digits(seed=0)
    return tuple(  # pyright: ignore[reportReturnType]
        TensorDataset(F.interpolate(part.images, size=(pixels, pixels), mode="bilinear"), part.labels)
        for part in (found.train, found.validation, found.test)
    )


def network() -> nn.Sequential:
    """Three residual blocks for 1x8x8 images or larger ones."""
    stem = (nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    blocks = Block(16, 16, 1), Block(16, 32, 2), Block(32, 32, 1)
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def trained(data: TensorDataset, epochs: int) -> nn.Module:
    """`network`, trained in plain PyTorch: what a user comes with."""
    torch.manual_seed(0)
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), 5e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for images, labels in DataLoader(data, 64, shuffle=True, drop_last=True):
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def measured(dyn: dc.DynamicModel, data: TensorDataset, policy: Policy) -> tuple[float, float]:
    """(share of the source's MACs, decision nets included where they are asked; accuracy)."""
    images, labels = data.tensors
    output, route = dyn.eval().run(images, policy=policy)
    macs = dyn.spent(route) if policy.reads_gates else dyn.macs(route)
    return float(macs.mean()) / dyn.static_macs, float((output.argmax(1) == labels).float().mean())
