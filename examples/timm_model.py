"""A model of timm: skip its blocks and channels per image, store it, load it without timm.

``python examples/timm_model.py``
"""

from __future__ import annotations

import tempfile

import torch

import dyncompile as dc
from dyncompile import zoo


def main(name: str = "timm:test_resnet?num_classes=10") -> None:
    """Print the sites and what a sampled route costs."""
    source = zoo.load(name)  # timm.create_model does as well; this also finds inputs
    dyn = dc.dynamize(source.model, method="lcnet", example_inputs=source.args).eval()
    print(dyn.explain())
    images = source.args[0]
    with torch.no_grad():
        print("equal at full:", torch.equal(dyn.run(images, policy=dc.Full())[0], source.model(images)))
        _, route = dyn.run(images, policy=dc.Sampled(0))
    print(f"sampled: {float(dyn.macs(route).mean()) / dyn.static_macs:.0%} of the MACs")
    with tempfile.TemporaryDirectory() as folder:
        loaded = dc.load(dc.save(dyn, folder))
    source.model.load_state_dict(dc.reduce_to_source(loaded))  # and back into timm's own model


if __name__ == "__main__":
    main()
