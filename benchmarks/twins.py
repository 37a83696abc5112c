"""Static networks built by hand: the modules of the source, each layer made anew at its size."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


def twin(source: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """A network of the source's classes whose layers have the shapes of `state`, with these weights.

    Knows convolutions (plain, grouped and depthwise), batch norms, linear layers, and the attention of timm's
    ViT and Swin and of BERT, whose number of heads follows from its projections or its table of biases.
    """
    made = copy.deepcopy(source).eval()
    for name, module in list(made.named_modules()):
        for child, layer in list(module.named_children()):
            key = f"{name}.{child}".lstrip(".")
            weight = state.get(f"{key}.weight")
            if weight is not None and weight.shape != layer.weight.shape:
                setattr(module, child, _resized(layer, weight))
    for name, module in made.named_modules():
        if hasattr(module, "relative_position_bias_table"):
            _set_biased_heads(module, state[f"{name}.relative_position_bias_table"])
        elif hasattr(module, "num_heads") and hasattr(module, "qkv"):
            _set_heads(module)
        elif hasattr(module, "num_attention_heads") and hasattr(module, "query"):
            _set_query_heads(module)
    missing = made.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys, missing.unexpected_keys
    left = [key for key in missing.missing_keys if not key.endswith("num_batches_tracked")]
    assert not left, left
    return made.eval().requires_grad_(False)


def _resized(layer: Any, weight: Tensor) -> nn.Module:
    if isinstance(layer, nn.Conv2d):
        out, per_group = weight.shape[:2]
        groups = layer.groups if layer.groups == 1 else out // (layer.out_channels // layer.groups)
        return nn.Conv2d(
            per_group * groups,
            out,
            layer.kernel_size,  # pyright: ignore
            layer.stride,  # pyright: ignore
            layer.padding,  # pyright: ignore
            layer.dilation,  # pyright: ignore
            groups,
            layer.bias is not None,
        )
    if isinstance(layer, nn.BatchNorm2d):
        return nn.BatchNorm2d(len(weight), layer.eps)
    assert isinstance(layer, nn.Linear), type(layer)
    return nn.Linear(weight.shape[1], weight.shape[0], layer.bias is not None)


def _set_heads(attention: Any) -> None:
    """Let timm's attention split what its projection gives."""
    attention.num_heads = attention.qkv.out_features // (3 * attention.head_dim)
    attention.attn_dim = attention.num_heads * attention.head_dim


def _set_biased_heads(attention: Any, table: Tensor) -> None:
    """Let the attention of timm's Swin split what its projection gives, with biases [pairs, heads]."""
    attention.num_heads = table.shape[1]
    attention.relative_position_bias_table = nn.Parameter(torch.empty_like(table))


def _set_query_heads(attention: Any) -> None:
    """Let BERT's attention split what its projections give."""
    attention.all_head_size = attention.query.out_features
    attention.num_attention_heads = attention.all_head_size // attention.attention_head_size


def agree(one: Callable[[], Any], other: Callable[[], Any]) -> float:
    """Largest absolute difference of two networks' first outputs over the largest magnitude."""
    with torch.inference_mode():
        first, second = (pytree.tree_leaves(run())[0] for run in (one, other))
    return float((first - second).abs().max() / first.abs().max())
