"""Other input sizes of third-party models, by the means that their libraries have for it.

Each function changes a copy of a model, whose parameters stay the same tensors: position embeddings are
resampled while the model runs. A model that none of them knows is left as it is: a CNN needs nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dyncompile.zoo.third_party import third_party


def take_size(module: nn.Module, size: tuple[int, int]) -> None:
    """Let `module` take images of `size` (height, width), in place, where its library offers a way."""
    for adapt in _ADAPTERS:
        adapt(module, size)


def _timm(module: Any, size: tuple[int, int]) -> None:
    """What `dynamic_img_size=True` sets up at construction, after it (vision_transformer, eva, swin)."""
    embed = getattr(module, "patch_embed", None)
    if getattr(module, "dynamic_img_size", None) is not False or embed is None:
        return
    module.dynamic_img_size = True
    embed.strict_img_size = False
    if embed.flatten:
        embed.flatten = False
        embed.output_fmt = third_party("timm").layers.Format("NHWC")
    for block in module.modules():
        if getattr(block, "dynamic_mask", None) is False:
            block.dynamic_mask = True


def _huggingface(module: Any, size: tuple[int, int]) -> None:
    """The argument `interpolate_pos_encoding` of a forward that has one."""
    forward = module.forward
    if "interpolate_pos_encoding" in inspect.signature(forward).parameters:
        module.forward = partial(forward, interpolate_pos_encoding=True)


def _torchvision(module: Any, size: tuple[int, int]) -> None:
    """The VisionTransformer of torchvision: its way for checkpoints (bicubic), taken while it runs."""
    if type(module).__module__ != "torchvision.models.vision_transformer" or size[0] != size[1]:
        return
    cells = size[0] // module.patch_size
    module.image_size = size[0]
    module.encoder.forward = partial(_resampled_encoder, module.encoder, cells)


def _resampled_encoder(encoder: Any, cells: int, input: Tensor) -> Tensor:
    """`Encoder.forward` of torchvision, position embeddings [1, 1 + n, D] resampled to cells x cells."""
    positions = cast(Tensor, encoder.pos_embedding)
    first, rest = positions[:, :1], positions[:, 1:]
    side = int(rest.shape[1] ** 0.5)
    old = rest.transpose(1, 2).reshape(1, -1, side, side)
    grid = F.interpolate(old, (cells, cells), mode="bicubic", align_corners=True)
    x = input + torch.cat((first, grid.flatten(2).transpose(1, 2)), 1)
    return encoder.ln(encoder.layers(encoder.dropout(x)))


_ADAPTERS: tuple[Callable[[Any, tuple[int, int]], None], ...] = (_timm, _huggingface, _torchvision)
