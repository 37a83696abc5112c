"""A U-Net of segmentation-models-pytorch: dense outputs, branches skipped per image.

``python examples/segmentation.py``
"""

from __future__ import annotations

import torch

import dyncompile as dc
from dyncompile.zoo.third_party import third_party


def main() -> None:
    """Print what is elastic, and that masks of all routes have the image's size."""
    third_party("torchvision")  # which the package imports: this makes it import beside a CPU-only torch
    import segmentation_models_pytorch as smp  # pyright: ignore[reportMissingImports]

    model = smp.Unet("resnet18", encoder_weights=None, classes=3).eval()
    images = torch.randn(2, 3, 64, 64)
    dyn = dc.dynamize(model, method="lcnet", example_inputs=images).eval()
    with torch.no_grad():
        print("equal at full:", torch.equal(dyn.run(images, policy=dc.Full())[0], model(images)))
        masks, route = dyn.run(images, policy=dc.Smallest())
    print(f"{list(masks.shape)} at {float(dyn.macs(route).mean()) / dyn.static_macs:.0%} of the MACs")
    print(f"{len(dyn.choices)} choices")


if __name__ == "__main__":
    main()
