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
from uuid import uuid4

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dyncompile.capture import capture
from dyncompile.errors import CheckpointError, DyncompileError
from dyncompile.pipeline import apply_passes
from dyncompile.program import Program
from dyncompile.runtime.model import DynamicModel
from dyncompile.signature import Leaf
from dyncompile.spec import parse_spec
from dyncompile.torchlib import encode_tensors, open_tensors

FORMAT = "dyncompile"
VERSION = 1
PROGRAM, WEIGHTS = "program.json", "model.safetensors"


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
    tensors, ties = _untied(dyn)
    description = {
        "format": FORMAT,
        "version": VERSION,
        "torch": torch.__version__,
        "source": source,
        "inputs": _describe_inputs(dyn.program),
        "history": list(dyn.history),
        "fingerprint": dyn.program.fingerprint,
        "ties": ties,
    }
    _replace(target / WEIGHTS, encode_tensors(tensors))
    _replace(target / PROGRAM, (json.dumps(description, indent=2) + "\n").encode())
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
    _load_strictly(dyn, folder / WEIGHTS, description["ties"])
    return dyn.eval()


def _untied(dyn: DynamicModel) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(one contiguous tensor per distinct storage, alias -> name of the tensor it is tied to)."""
    seen: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    for name, tensor in dyn.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            ties[name] = seen[id(tensor)]
            continue
        seen[id(tensor)] = name
        tensors[name] = tensor.detach().cpu().contiguous().clone()
    return tensors, ties


def _replace(path: Path, content: bytes) -> None:
    """Write aside, flush to disk, rename: a reader sees the old file or the new one, never a part."""
    aside = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with open(aside, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


# -- program.json -----------------------------------------------------------------------------------


def _describe_inputs(program: Program) -> dict[str, Any]:
    signature = program.signature
    return {
        "structure": pytree.treespec_dumps(signature.structure),
        "leaves": [_describe_leaf(leaf) for leaf in signature.leaves],
    }


def _describe_leaf(leaf: Leaf) -> dict[str, Any]:
    if leaf.shape is None:
        return {"constant": leaf.constant}
    return {"shape": leaf.shape, "dtype": str(leaf.dtype).removeprefix("torch.")}


def _read_description(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing", fix="give the directory that dyncompile.save wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if type(found) is not dict or found.get("format") != FORMAT:
        raise CheckpointError(f"{path} does not describe a dyncompile model")
    if not isinstance(found.get("version"), int) or found["version"] > VERSION:
        raise CheckpointError(
            f"{path} has format version {found.get('version')!r}, this release reads up to {VERSION}",
            fix="update dyncompile",
        )
    expected = {"source": str | None, "inputs": dict, "history": list, "fingerprint": str, "ties": dict}
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
        args, kwargs = _example_call(description["inputs"], model)
        passes = [parse_spec(str(spec)) for spec in description["history"]]
        return apply_passes(capture(model, args, kwargs), passes)
    except DyncompileError as error:
        raise CheckpointError(
            f"the checkpoint's passes cannot be replayed on this source: {error}"
        ) from error


def _example_call(inputs: Mapping[str, Any], model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs of the recorded shapes; only shapes and dtypes matter to capture."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        structure = pytree.treespec_loads(inputs["structure"])
        leaves = [_example_leaf(leaf, device) for leaf in inputs["leaves"]]
        named: dict[str, Any] = pytree.tree_unflatten(leaves, structure)
        return (), dict(named)
    except (KeyError, TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint's description of inputs is damaged: {error}") from None


def _example_leaf(leaf: Mapping[str, Any], device: torch.device) -> Any:
    if "constant" in leaf:
        return leaf["constant"]
    dtype = getattr(torch, str(leaf["dtype"]), None)
    shape = [2 if n is None else int(n) for n in leaf["shape"]]
    if not isinstance(dtype, torch.dtype) or any(not 0 <= n < 1 << 20 for n in shape):
        raise ValueError(f"not a tensor description: {dict(leaf)}")
    return torch.zeros(1, dtype=dtype, device=device).expand(shape)


# -- weights ----------------------------------------------------------------------------------------


def _load_strictly(dyn: DynamicModel, path: Path, ties: Mapping[str, str]) -> None:
    state = dyn.state_dict()
    wanted = {name: list(value.shape) for name, value in state.items() if name not in ties}
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
    loaded.update({alias: loaded[name] for alias, name in ties.items() if alias in state and name in loaded})
    dyn.load_state_dict(loaded, strict=True)


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
