"""Checkpoints are data: ``program.json`` says how the model was made, ``model.safetensors`` holds its state.

Loading replays the history of passes on the source, compares the fingerprint of the graphs, and loads
strictly. Nothing is unpickled and nothing that a file says is executed: pass specifications are parsed as
literals.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dyncompile.capture import capture
from dyncompile.errors import CheckpointError, DyncompileError
from dyncompile.files import replace_file
from dyncompile.pipeline import apply_passes
from dyncompile.program import Program
from dyncompile.runtime.model import DynamicModel
from dyncompile.signature import Leaf, Signature
from dyncompile.spec import parse_spec
from dyncompile.torchlib import encode_tensors, open_tensors

FORMAT = "dyncompile"
VERSION = 1
PROGRAM, WEIGHTS = "program.json", "model.safetensors"
_CONSTANTS = (bool, int, float, str, type(None))


def save(dyn: DynamicModel, directory: str | os.PathLike[str], *, source: str | None = None) -> Path:
    """Write a dynamic model to `directory` (created if missing); each file is replaced as a whole.

    Args:
        dyn: the model; its training mode is not stored.
        directory: where ``program.json`` and ``model.safetensors`` go; no other file is touched.
        source: how to build the source without the user's help, e.g. ``"timm:resnet50"``.

    Returns:
        The directory.
    """
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    description = {
        "format": FORMAT,
        "version": VERSION,
        "torch": torch.__version__,
        "source": source,
        "inputs": _describe_inputs(dyn.program.signature),
        "history": list(dyn.history),
        "fingerprint": dyn.program.fingerprint,
    }
    text = json.dumps(description, indent=2, allow_nan=False) + "\n"
    replace_file(target / WEIGHTS, encode_weights(dyn))
    replace_file(target / PROGRAM, text.encode())
    return target


def load(directory: str | os.PathLike[str], source: nn.Module | None = None) -> DynamicModel:
    """The dynamic model that `save` wrote, in evaluation mode.

    Args:
        directory: what `save` was given.
        source: the static model (its weights do not matter); None builds it from the recorded description.

    Raises:
        CheckpointError: files are missing or damaged, the source is another network, or keys do not match.
    """
    folder = Path(directory)
    description = _read_description(folder / PROGRAM)
    model = source if source is not None else _rebuild(description["source"])
    dyn = DynamicModel(_replay(description, model))
    if dyn.program.fingerprint != description["fingerprint"]:
        raise CheckpointError(
            "replaying the checkpoint's passes on this source gives another program",
            where=f"history {description['history']}",
            fix="give the network (and the versions of its library) that the checkpoint was made from",
        )
    load_weights(dyn, folder / WEIGHTS)
    return dyn.eval()


def _distinct(dyn: DynamicModel) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(saved tensors, each once; further name -> name of the tensor that it is tied to)."""
    first: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    for name, tensor in dyn.state_dict(keep_vars=True).items():
        if first.setdefault(id(tensor), name) == name:
            tensors[name] = tensor
        else:
            ties[name] = first[id(tensor)]
    return tensors, ties


# -- program.json -----------------------------------------------------------------------------------


def _describe_inputs(signature: Signature) -> Any:
    """The captured arguments by name, with descriptions in place of values."""
    named: Any = pytree.tree_unflatten(list(signature.leaves), signature.structure)
    return {name: _describe(value) for name, value in named.items()}


def _describe(value: Any) -> dict[str, Any]:
    """One entry: the kind of value -> what it holds."""
    if isinstance(value, Leaf) and value.shape is not None:
        return {"tensor": {"shape": value.shape, "dtype": str(value.dtype).removeprefix("torch.")}}
    if isinstance(value, Leaf) and isinstance(value.constant, _CONSTANTS):
        return {"constant": value.constant}
    entries: Any = value
    kind = type(entries.constant if isinstance(value, Leaf) else entries).__name__
    if kind == "dict" and all(isinstance(key, str) for key in entries):
        return {kind: {key: _describe(entry) for key, entry in entries.items()}}
    if kind in ("list", "tuple"):
        return {kind: [_describe(entry) for entry in entries]}
    raise CheckpointError(
        f"an argument of the model holds a {kind}, which a checkpoint cannot describe",
        fix="dynamize with tensors, plain values, lists, tuples and dicts as arguments",
    )


def _read_description(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing", fix="give the directory that dyncompile.save wrote"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if type(found) is not dict or found.get("format") != FORMAT:
        raise CheckpointError(f"{path} does not describe a dyncompile model")
    if not isinstance(found.get("version"), int) or found["version"] > VERSION:
        raise CheckpointError(
            f"{path} has format version {found.get('version')!r}, this release reads up to {VERSION}",
            fix="update dyncompile",
        )
    expected = {"source": str | None, "inputs": dict, "history": list, "fingerprint": str}
    wrong = [key for key, kind in expected.items() if key not in found or not isinstance(found[key], kind)]
    if wrong:
        raise CheckpointError.of_all(f"{path} lacks or garbles entries", wrong)
    return found


def _rebuild(source: str | None) -> nn.Module:
    if source is None:
        raise CheckpointError(
            "the checkpoint does not say how its source is built", fix="pass it: load(dir, source=model)"
        )
    from dyncompile import zoo

    if not source.startswith(("timm:", "torchvision:", "hf:")):
        raise CheckpointError(
            f"the checkpoint names the Python function {source!r}, and files may not choose code to run",
            fix="build the model yourself: load(dir, source=model)",
        )
    return zoo.load(source).model


def _replay(description: Mapping[str, Any], model: nn.Module) -> Program:
    try:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        named = {name: _example(value, device) for name, value in description["inputs"].items()}
        passes = [parse_spec(str(spec)) for spec in description["history"]]
        return apply_passes(capture(model, (), named), passes)
    except DyncompileError as error:
        raise CheckpointError(
            f"the checkpoint's passes cannot be replayed on this source: {error}"
        ) from error


def _example(described: Any, device: torch.device) -> Any:
    """A value of the recorded form; only shapes and dtypes matter to capture."""
    try:
        ((kind, content),) = described.items()
        if kind == "dict":
            return {str(key): _example(entry, device) for key, entry in content.items()}
        if kind in ("list", "tuple"):
            entries = [_example(entry, device) for entry in content]
            return entries if kind == "list" else tuple(entries)
        if kind == "tensor":
            return _example_tensor(content["shape"], content["dtype"], device)
        if kind == "constant" and isinstance(content, _CONSTANTS):
            return content
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    raise CheckpointError(f"the checkpoint's description of inputs is damaged: {str(described)[:80]}")


def _example_tensor(shape: list[Any], dtype: str, device: torch.device) -> Tensor:
    """Zeros that take no memory, whatever the file says about their size. Raises ValueError."""
    kind = getattr(torch, dtype, None)
    sizes = [2 if n is None else n for n in shape]
    if not isinstance(kind, torch.dtype) or not all(type(n) is int and 0 <= n < 1 << 20 for n in sizes):
        raise ValueError(f"{shape} of {dtype!r}")
    return torch.zeros(1, dtype=kind, device=device).expand(sizes)


# -- weights ----------------------------------------------------------------------------------------


def encode_weights(dyn: DynamicModel) -> bytes:
    """All persistent state as a safetensors file; tied tensors are in it once."""
    return encode_tensors({name: t.detach().cpu().contiguous() for name, t in _distinct(dyn)[0].items()})


def load_weights(dyn: DynamicModel, path: Path) -> None:
    """Load a weights file that `save` wrote; raises CheckpointError with every key that does not fit."""
    tensors, ties = _distinct(dyn)
    wanted = {name: list(value.shape) for name, value in tensors.items()}
    try:
        with open_tensors(path) as file:
            found = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            problems = compare_keys(wanted, found)
            if problems:
                raise CheckpointError.of_all(f"{path} does not fit the model", problems)
            loaded = {name: file.get_tensor(name) for name in wanted}
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    dyn.load_state_dict({**loaded, **{alias: loaded[name] for alias, name in ties.items()}}, strict=True)


def compare_keys(wanted: Mapping[str, list[int]], found: Mapping[str, list[int]]) -> list[str]:
    """Every missing, unexpected or misshapen key, in words."""
    problems = [f"missing: {name} {shape}" for name, shape in wanted.items() if name not in found]
    problems += [f"unexpected: {name} {shape}" for name, shape in found.items() if name not in wanted]
    problems += [
        f"shape of {name}: {found[name]} in the file, {shape} in the model"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    return problems
