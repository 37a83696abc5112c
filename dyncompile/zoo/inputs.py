"""Example inputs that a model accepts, read from what the model says about itself.

timm's ``pretrained_cfg`` and Hugging Face's ``config`` are read as attributes, so neither library is needed.
A model that says nothing is tried on inputs that would fit its first layer, and so is one of timm's that was
made for other images than its configuration says (``in_chans``, ``img_size``).
"""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from dyncompile.errors import SpecError

Inputs = tuple[tuple[Any, ...], dict[str, Any]]

_TOKENS = 16
_SAMPLES = 8000
"""Half a second of sound at the usual 16 kHz."""
_SIZES = {
    1: (256, 1024, _SAMPLES),
    2: (224, 32, 28, 64, 96, 128, 256, 299, 384, 512, 8, 16),
    3: (32, 64, 112),
}
"""Lengths of every spatial axis to try, by their number."""


def images(batch: int, channels: int, height: int, width: int) -> Tensor:
    """Standard normal images, ``[B, C, H, W]``."""
    return torch.randn(batch, channels, height, width)


def as_inputs(given: Any) -> Inputs:
    """A tensor, a tuple of positional or a mapping of keyword inputs as ``(args, kwargs)``."""
    if isinstance(given, Mapping):
        return (), dict(cast(Mapping[str, Any], given))
    return (tuple(cast(tuple[Any, ...], given)) if isinstance(given, tuple | list) else (given,)), {}


def example_inputs(model: nn.Module, batch: int = 2) -> Inputs:
    """Random inputs of ``batch`` samples as ``(args, kwargs)``, on the model's device and in its dtype.

    Raises:
        SpecError: the model names no input size and nothing that fits its first layer runs.
    """
    args, kwargs = _huggingface(model, batch) or _tried(model, batch)
    place = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return tuple(_like(value, place) for value in args), {key: _like(v, place) for key, v in kwargs.items()}


def _huggingface(model: nn.Module, batch: int) -> Inputs | None:
    if hasattr(model, "config") and hasattr(model, "main_input_name"):
        return (), dict(_keywords(model, cast(Any, model.config), batch))
    return None


def _like(value: Any, place: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(place.device, place.dtype if value.is_floating_point() else value.dtype)


def _keywords(model: nn.Module, config: Any, batch: int) -> Iterator[tuple[str, Any]]:
    """The keyword inputs that ``forward`` takes, by their names in Hugging Face's convention."""
    accepted = inspect.signature(model.forward).parameters
    if "pixel_values" in accepted:
        yield "pixel_values", _pixels(getattr(config, "vision_config", config), batch)
    if "input_values" in accepted:
        yield "input_values", _sound(config, batch)
    if "input_features" in accepted:
        yield "input_features", torch.randn(batch, config.num_mel_bins, 2 * config.max_source_positions)
    if "input_ids" in accepted:
        yield "input_ids", _tokens(config, batch)
    if "input_ids" in accepted and "attention_mask" in accepted:
        yield "attention_mask", _padding(batch)
    if "decoder_input_ids" in accepted:
        yield "decoder_input_ids", _tokens(config, batch)
    if "use_cache" in accepted:
        yield "use_cache", False


def _pixels(config: Any, batch: int) -> Tensor:
    size = getattr(config, "image_size", None) or 224
    height, width = cast(tuple[int, int], size) if isinstance(size, tuple | list) else (size, size)
    return images(batch, getattr(config, "num_channels", 3), height, width)


def _sound(config: Any, batch: int) -> Tensor:
    """A spectrogram ``[B, frames, mel]`` where the configuration sizes it, else a wave ``[B, samples]``."""
    mel = getattr(config, "num_mel_bins", None)
    return torch.randn(batch, config.max_length, mel) if mel else torch.randn(batch, _SAMPLES)


def _tokens(config: Any, batch: int) -> Tensor:
    """Random token ids, ``[B, T]``; the first few ids are left out, they mean padding, start and end."""
    vocabulary = config.get_text_config().vocab_size
    return torch.randint(min(5, vocabulary - 1), vocabulary, (batch, _TOKENS))


def _padding(batch: int) -> Tensor:
    """A mask ``[B, T]`` whose last row ends in padding: without any, models take a shortcut that real batches
    do not.
    """
    mask = torch.ones(batch, _TOKENS, dtype=torch.long)
    mask[-1, -3:] = 0
    return mask


def _tried(model: nn.Module, batch: int) -> Inputs:
    trial = copy.deepcopy(model).eval()
    place = next(iter(model.parameters()), torch.empty(0))
    for candidate in itertools.chain(_of_timm(model, batch), _fitting(model, batch)):
        if _runs(trial, _like(candidate, place)):
            return (candidate,), {}
    fix = "pass example_inputs: a tensor, a tuple of positional or a dict of keyword inputs"
    raise SpecError("no example inputs can be derived from the model", where=type(model).__name__, fix=fix)


def _runs(model: nn.Module, candidate: Tensor) -> bool:
    try:
        with torch.no_grad():
            model(candidate)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
        return False
    return True


def _of_timm(model: nn.Module, batch: int) -> Iterator[Tensor]:
    """What a model of its name was trained on."""
    known = cast(Mapping[str, Any] | None, getattr(model, "pretrained_cfg", None))
    if known and known.get("input_size"):
        yield images(batch, *known["input_size"])


def _fitting(model: nn.Module, batch: int) -> Iterator[Tensor]:
    """Inputs for the first layer by order of registration, the usual sizes first."""
    for layer in model.modules():
        match layer:
            case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
                rank = layer.weight.ndim - 2
                yield from (torch.randn(batch, layer.in_channels, *(n,) * rank) for n in _SIZES[rank])
            case nn.Linear():
                yield torch.randn(batch, layer.in_features)
                yield torch.randn(batch, _TOKENS, layer.in_features)
            case nn.Embedding():
                yield torch.randint(layer.num_embeddings, (batch, _TOKENS))
            case _:
                continue
        return
