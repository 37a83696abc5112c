"""Modules as files that run elsewhere, ``.onnx`` and ``.pt2`` (torch.export), and how to run these here."""

from __future__ import annotations

import importlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dyncompile.deploy.exports.samples import distinct
from dyncompile.errors import DyncompileError, SpecError

FORMATS = ("onnx", "pt2")
BUNDLE = "bundle"
"""A folder of ONNX files."""

Run = Callable[[Sequence[Tensor]], list[Tensor]]
"""Runs a file: flat tensor inputs -> flat tensor outputs."""


@dataclass(frozen=True, slots=True)
class Call:
    """How a module is called.

    Attributes:
        inputs: example arguments by name, which go by position; several tensors of one in any structure.
        shapes: which sizes may differ, in the same structure; None fixes all.
        outputs: names of the flat outputs; empty for any.
    """

    inputs: dict[str, Any]
    shapes: dict[str, Any] | None = None
    outputs: tuple[str, ...] = ()


def check_format(name: str, known: Sequence[str] = FORMATS) -> None:
    """Raises SpecError for an unknown format, or where what writes it is not installed."""
    if name == BUNDLE and name not in known:
        raise SpecError(
            "a bundle holds the static networks of all routes, and no single route can be asked of it",
            fix=f"leave the route out, or choose {' or '.join(known)}",
        )
    if name not in known:
        raise SpecError(f"{name!r} is no format of an export", fix=f"choose {' or '.join(known)}")
    if name == "pt2":
        return
    for library in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(library) is None:
            raise SpecError(f"{library} is not installed", fix="pip install 'dyncompile[onnx]'")


def write_file(module: nn.Module, call: Call, path: Path, name: str) -> Run:
    """Write a module without control flow in Python in the format `name`.

    Raises:
        DyncompileError: the exporter or the runtime refuses the module.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # exporters warn about matters of their own
        try:
            arguments = tuple(call.inputs.values())
            shapes = None if call.shapes is None else tuple(call.shapes.values())
            program = torch.export.export(module, arguments, dynamic_shapes=shapes, strict=False)
        except Exception as error:  # tracing may fail in any way
            raise _refused("torch.export", error) from error
        return _save_pt2(program, call, path) if name == "pt2" else _save_onnx(program, call, path)


def _save_pt2(program: torch.export.ExportedProgram, call: Call, path: Path) -> Run:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    path.write_bytes(buffer.getvalue())
    module = program.module()
    structure = pytree.tree_structure(tuple(call.inputs.values()))

    def run(given: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return _tensors(module(*pytree.tree_unflatten(list(given), structure)))

    return run


def _save_onnx(program: torch.export.ExportedProgram, call: Call, path: Path) -> Run:
    onnx: Any = torch.onnx
    names = distinct(call.outputs, map(str, program.graph_signature.user_inputs))
    try:
        with errors_only("onnx_ir"):
            made = onnx.export(program, dynamo=True, verbose=False, output_names=names or None)
            _rename_values(made.model)
        made.save(path)
    except Exception as error:  # translation may fail in any way
        raise _refused("torch.onnx.export", error) from error
    return _with_onnxruntime(path)


def _rename_values(model: Any) -> None:
    """Give values inside a model that are named as its outputs are other names."""
    passes: Any = importlib.import_module("onnx_ir.passes.common")
    passes.NameFixPass()(model)


def _with_onnxruntime(path: Path) -> Run:
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # it warns of initializers that a rewrite left over
    try:
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no class in common
        raise _refused("ONNX Runtime", error) from error
    names = [one.name for one in session.get_inputs()]

    def run(given: Sequence[Tensor]) -> list[Tensor]:
        try:
            feed = {name: value.detach().numpy() for name, value in zip(names, given, strict=True)}
            return [torch.as_tensor(value) for value in session.run(None, feed)]
        except Exception as error:  # numpy has not all dtypes of torch
            raise _refused("ONNX Runtime", error) from error

    return run


@contextmanager
def errors_only(library: str) -> Generator[None]:
    """Keep a library's remarks on what it leaves as it is from the user's terminal."""
    logger = logging.getLogger(library)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _refused(who: str, error: Exception) -> DyncompileError:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return DyncompileError(f"{who} refuses the network: {type(error).__name__}: {text}")
