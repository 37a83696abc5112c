"""Static networks as files that run elsewhere: ``.pt2`` (torch.export) and ``.onnx``.

A file is run and compared with the network before it gets its name.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from dyncompile.errors import ContractError, DyncompileError, SpecError
from dyncompile.files import ASIDE
from dyncompile.signature import Signature

FORMATS = ("pt2", "onnx")
_TOLERANCE = 1e-4
"""Largest difference, relative to the largest output: other kernels sum in another order."""


@dataclass(frozen=True, slots=True)
class Written:
    """A file, and how far its outputs are from the network's: largest absolute difference."""

    path: Path
    bytes: int
    difference: float


def write_static(static: fx.GraphModule, signature: Signature, path: Path, file_format: str) -> Written:
    """Write a specialized network; any batch size, every other size fixed.

    Args:
        static: what `specialize` gave.
        signature: of the model that it came from.
        path: is replaced as a whole.
        file_format: "pt2" or "onnx".

    Raises:
        SpecError: an unknown format, or onnx is not installed.
        DyncompileError: the exporter refuses the network, or the file cannot be written.
        ContractError: the file computes something else; nothing is written.
    """
    if file_format not in FORMATS:
        raise SpecError(
            f"{file_format!r} is no format of a static file", fix=f"choose {' or '.join(FORMATS)}"
        )
    inputs, shapes = _inputs(signature)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=ASIDE) as aside:
            made = Path(aside) / path.name
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # exporters warn about matters of their own
                run = (_write_pt2 if file_format == "pt2" else _write_onnx)(static, inputs, shapes, made)
                difference = _compared(static(*inputs), run(inputs))
            size = made.stat().st_size
            os.replace(made, path)
    except OSError as error:
        raise DyncompileError(f"the file cannot be written: {error}", where=str(path)) from None
    return Written(path, size, difference)


def _inputs(signature: Signature) -> tuple[tuple[Any, ...], Any]:
    """(random arguments of a batch of 3, which sizes move) without arguments that hold no tensor."""
    flat = [
        None if leaf.shape is None else _random([3 if n is None else n for n in leaf.shape], leaf.dtype)
        for leaf in signature.leaves
    ]
    moves = [
        None if leaf.shape is None else {0: Dim.DYNAMIC} if leaf.batched else {} for leaf in signature.leaves
    ]
    named: dict[str, Any] = pytree.tree_unflatten(flat, signature.structure)
    kept = [name for name, value in named.items() if any(x is not None for x in pytree.tree_leaves(value))]
    shapes: dict[str, Any] = pytree.tree_unflatten(moves, signature.structure)
    return tuple(named[name] for name in kept), tuple(shapes[name] for name in kept)


def _random(sizes: list[int], dtype: torch.dtype | None) -> Tensor:
    """Numbers that every network takes: small integers are valid indices."""
    if dtype is None or dtype.is_floating_point:
        return torch.randn(sizes, dtype=dtype, generator=torch.Generator().manual_seed(0))
    return torch.ones(sizes, dtype=dtype)


def _write_pt2(static: nn.Module, inputs: tuple[Any, ...], shapes: Any, path: Path) -> Any:
    try:
        program = torch.export.export(static, inputs, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # tracing may fail in any way
        raise _refused("torch.export", error) from error
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    path.write_bytes(buffer.getvalue())
    module = program.module()

    def run(given: tuple[Any, ...]) -> Any:
        return module(*given)

    return run


def _write_onnx(static: nn.Module, inputs: tuple[Any, ...], shapes: Any, path: Path) -> Any:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise SpecError(f"{name} is not installed", fix="pip install 'dyncompile[onnx]'")
    onnx: Any = torch.onnx
    try:
        program = onnx.export(static, inputs, dynamic_shapes=shapes, dynamo=True, verbose=False)
        program.save(path)
    except Exception as error:  # translation may fail in any way
        raise _refused("torch.onnx.export", error) from error
    runtime: Any = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(given: Any) -> list[Tensor]:
        flat = [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor)]
        names = [one.name for one in session.get_inputs()]
        feed = {name: value.numpy() for name, value in zip(names, flat, strict=True)}
        return [torch.as_tensor(value) for value in session.run(None, feed)]

    return run


def _refused(who: str, error: Exception) -> DyncompileError:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return DyncompileError(f"{who} refuses the network: {type(error).__name__}: {text}")


def _compared(expected: Any, found: Any) -> float:
    """Largest absolute difference of two outputs. Raises ContractError where they do not agree."""
    wanted, given = (
        [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)] for out in (expected, found)
    )
    if [t.shape for t in wanted] != [t.shape for t in given]:
        raise ContractError("the exported file returns outputs of other shapes; it was not written")
    apart = max((float((a - b).abs().max()) for a, b in zip(wanted, given, strict=True)), default=0.0)
    scale = max((float(a.abs().max()) for a in wanted), default=0.0)
    if not apart <= _TOLERANCE * max(scale, 1.0):
        raise ContractError(f"the exported file differs by {apart:.3g}; it was not written")
    return apart
