"""What can be said about a model before tracing it, with a clear reason for each refusal."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dyncompile.errors import CaptureError

_WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel")


def check_inputs(model: nn.Module, flat: Sequence[Any]) -> None:
    """Raise CaptureError for inputs that have no batch or lie on another device."""
    tensors = [value for value in flat if isinstance(value, Tensor)]
    if not any(t.dim() > 0 for t in tensors):
        raise CaptureError(
            "the example inputs hold no tensor with a batch axis", fix="give at least one batched tensor"
        )
    devices = {p.device for p in (*model.parameters(), *model.buffers())}
    if len(devices) > 1:
        raise CaptureError(
            f"the model is spread over several devices: {sorted(map(str, devices))}",
            fix="move it to one device first",
        )
    home = next(iter(devices), tensors[0].device)
    away = sorted({str(t.device) for t in tensors if t.device != home})
    if away:
        raise CaptureError(
            f"the model is on {home}, an example input on {', '.join(away)}",
            fix=f"move the example inputs to {home}",
        )


def check_runs(owned: nn.Module, flat: Sequence[Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Run a copy once where the input dtype is doubtful: tracing accepts mixtures that eager refuses.

    Raises CaptureError with the dtypes and what eager says.
    """
    wanted = {p.dtype for p in owned.parameters() if p.is_floating_point()}
    given = {v.dtype for v in flat if isinstance(v, Tensor)}
    looks_up = any(isinstance(module, nn.Embedding) for module in owned.modules())
    if given <= wanted or (looks_up and not any(dtype.is_floating_point for dtype in given - wanted)):
        return
    try:
        with torch.no_grad():
            copy.deepcopy(owned).eval()(*args, **kwargs)
    except Exception as error:  # the user's own forward refuses its inputs
        raise CaptureError(
            f"the model does not take inputs of dtype {_names(given)}: {error}",
            fix=f"its parameters are {_names(wanted)}: give example inputs of that dtype",
        ) from error


def _names(dtypes: set[torch.dtype]) -> str:
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))


def check_module(model: nn.Module, *, whole: bool = True) -> None:
    """Raise CaptureError for modules that no graph can be captured from; a `whole` network has parameters."""
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError(
            "the model is a scripted module", fix="pass the eager module that it was scripted from"
        )
    if hasattr(model, "_orig_mod"):
        raise CaptureError(
            "the model is already compiled",
            fix="pass the eager module: model._orig_mod; compile the result instead",
        )
    if type(model).__name__ in _WRAPPERS:
        raise CaptureError(
            f"the model is wrapped in {type(model).__name__}",
            fix="pass model.module and wrap the dynamic model instead",
        )
    if whole and not any(True for _ in model.parameters()):
        raise CaptureError(
            "the model has no parameters, so nothing in it can become dynamic", fix="pass the network itself"
        )
