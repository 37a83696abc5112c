"""Example inputs: taken as given, or found for a model that says what it eats."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dyncompile.errors import CaptureError

_BATCH = 2
_TOKENS = 16
_FIX = "give example_inputs: a tensor, a tuple of positional or a dict of keyword arguments"


def split_inputs(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(positional, keyword) arguments of a call."""
    if isinstance(example, dict):
        return (), {str(key): value for key, value in example.items()}
    if isinstance(example, tuple | list):
        return tuple(example), {}
    if isinstance(example, Tensor):
        return (example,), {}
    raise CaptureError(f"example_inputs is a {type(example).__name__}", fix=_FIX)


def example_inputs_of(model: nn.Module) -> Any:
    """Inputs that fit a model: timm's `pretrained_cfg`, a Hugging Face config, else the first layer that tells.

    Raises CaptureError when the model says nothing about its inputs.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    config = getattr(model, "pretrained_cfg", None)
    size = config.get("input_size") if isinstance(config, dict) else None
    if size:
        return torch.randn(_BATCH, *size, dtype=dtype, device=device)
    found = _from_hugging_face(model, dtype, device)
    if found is not None:
        return found
    for example in _from_first_layer(model, dtype, device):
        if _accepts(model, example):
            return example
    raise CaptureError(f"nothing in {type(model).__name__} says what its inputs look like", fix=_FIX)


def _from_hugging_face(model: nn.Module, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor] | None:
    config, main = getattr(model, "config", None), getattr(model, "main_input_name", None)
    if config is None or main is None:
        return None
    if main == "pixel_values" and hasattr(config, "image_size"):
        side = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
        channels = getattr(config, "num_channels", 3)
        return {main: torch.randn(_BATCH, channels, side, side, dtype=dtype, device=device)}
    if main == "input_ids" and hasattr(config, "vocab_size"):
        ids = torch.randint(1, config.vocab_size, (_BATCH, _TOKENS), device=device)
        return {main: ids, "attention_mask": torch.ones_like(ids)}
    return None


def _from_first_layer(model: nn.Module, dtype: torch.dtype, device: torch.device) -> Iterator[Tensor]:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            for side in (224, 32, 28, 64, 8):
                yield torch.randn(_BATCH, module.in_channels, side, side, dtype=dtype, device=device)
            return
        if isinstance(module, nn.Linear):
            yield torch.randn(_BATCH, module.in_features, dtype=dtype, device=device)
            yield torch.randn(_BATCH, _TOKENS, module.in_features, dtype=dtype, device=device)
            return
        if isinstance(module, nn.Embedding):
            yield torch.randint(module.num_embeddings, (_BATCH, _TOKENS), device=device)
            return


def _accepts(model: nn.Module, example: Tensor) -> bool:
    """Whether a shape-only run of the model takes this input; the model itself does not run."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    import copy

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with mode, torch.no_grad():
            copy.deepcopy(model).to("meta").eval()(example.to("meta"))
    except Exception:  # noqa: BLE001  (any failure of the user's forward means: not this shape)
        return False
    return True
