"""Dynamic resolution: a small net picks the size that each image is resized to (DRNet, NeurIPS 2021).

    d = decide(policy, "resolution", predictor(x))          x [B, C, H, W] -> [B, sizes]
    y[rows of size k] = network_k(resize(x[rows], size_k))  one set of weights, batch norms of their own

"Dynamic Resolution Network" (Zhu et al., 2021), verified against its text: candidates 224, 168, 112; private
statistics *and* private affine of every batch norm per resolution; the predictor on a down-scaled image (128
for ResNets, 64 for MobileNetV2), straight-through Gumbel in training; a batch is divided by resolution, so
that every norm sees its own samples. Its code leaves the norms of shortcuts shared, runs all resolutions and
draws noise in evaluation; here none of that. The predictor has no batch norm (it decides for single images),
its layer sizes for MobileNets and the linear one are ours, and so is the bilinear resize with a low-pass.

The network at another size is a capture of the user's own code at that size, so whatever that code does with
sizes is right. At the native size the image is not resized at all.
"""

from dyncompile.passes.resolution.sizes import Resolution

PASSES = (Resolution,)

__all__ = ["PASSES", "Resolution"]
