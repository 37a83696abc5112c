"""Checkpoints are data: ``program.json`` says how the model was made, ``model.safetensors`` holds its state.

Loading replays the history of passes on the source, compares the fingerprint of the graphs, and loads
strictly. The source is the user's module, or the captured graph in ``graph.json`` (`dyncompile.stored`), so
that a checkpoint loads where the source's code is not; a network that is run at several sizes of an input is
kept at all of them. Nothing is unpickled and nothing that a file says is executed: pass specifications are
parsed as literals, operators come from a closed list.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dyncompile.capture import capture
from dyncompile.deploy.deployed import Deployed
from dyncompile.errors import CheckpointError, DyncompileError, SpecError
from dyncompile.files import current, replace_files
from dyncompile.pipeline import apply_passes
from dyncompile.program import Program
from dyncompile.runtime.model import DynamicModel, as_dynamic
from dyncompile.spec import parse_spec
from dyncompile.state import STATE_PREFIX
from dyncompile.stored import (
    describe_network,
    is_of_a_size,
    restore_network,
    sizes_of,
    source_constants,
)
from dyncompile.stored.calling import describe_inputs, example_inputs
from dyncompile.stored.casts import as_captured, cast_again, describe_casts
from dyncompile.stored.description import (
    CONSTANTS,
    FORMAT,
    GRAPH,
    PROGRAM,
    VERSION,
    WEIGHTS,
    check_place,
    is_ours,
    read_description,
)
from dyncompile.torchlib import encode_tensors
from dyncompile.weights import SHARD_SIZE, compare_keys, open_weights, write_weights

_TRIES = 5
"""How often a checkpoint is read that is replaced meanwhile."""


def save(
    dyn: DynamicModel,
    directory: str | os.PathLike[str],
    *,
    source: str | None = None,
    shard_size: int = SHARD_SIZE,
) -> Path:
    """Write a dynamic model to `directory` (created if missing), all of it or nothing.

    A process that is killed at any point leaves what was there, or the new checkpoint.

    Args:
        dyn: the model; its training mode is not stored, nor that it is compiled.
        directory: where the checkpoint goes; files that are no part of one stay.
        source: how to build the source without the user's help, e.g. ``"timm:resnet50"``.
        shard_size: bytes of tensors per file; larger models are split as Hugging Face splits them.

    Returns:
        The directory.

    Raises:
        SpecError: it is no dynamic model, or one that was deployed.
        CheckpointError: the directory holds weights that are not of a dynamic model.
    """
    target, model = Path(directory), _unfolded(dyn)
    check_place(target)
    written: set[str] = set()

    def fill(folder: Path) -> None:
        weights = write_weights(folder, _plain(_distinct(model)[0]), WEIGHTS, shard_size)
        description = _describe(model, folder, source, weights)
        (folder / PROGRAM).write_text(json.dumps(description, indent=2, allow_nan=False) + "\n")
        written.update(path.name for path in folder.iterdir())

    replace_files(target, fill)
    for path in target.iterdir():
        if is_ours(path.name) and path.name not in written:
            path.unlink()
    return target


def _unfolded(dyn: nn.Module) -> DynamicModel:
    """The model itself. Raises SpecError for other models and those that were deployed."""
    inner = as_dynamic(dyn)
    if isinstance(inner, Deployed):
        raise SpecError(
            "a deployed model has folded weights under the source's names",
            fix="keep the model that it was deployed from, and deploy anew after loading",
        )
    return inner


def load(directory: str | os.PathLike[str], source: nn.Module | None = None) -> DynamicModel:
    """The dynamic model that `save` wrote, in evaluation mode; what is being replaced is read anew.

    Args:
        directory: what `save` was given.
        source: the static model (its weights do not matter). None takes the captured graph of the checkpoint,
            at all sizes of an input that the model has, which needs no code of the source; outputs of the
            source's own classes are then plain dicts.
            Where none could be stored, the source is built from its recorded name.

    Raises:
        CheckpointError: files are missing or damaged, the source is another network, or keys do not match.
    """
    folder = Path(directory)
    for _ in range(_TRIES):
        found = _stamp(folder)
        try:
            dyn = _load(folder, source)
        except CheckpointError:
            if _stamp(folder) == found:
                raise
        else:
            if _stamp(folder) == found:
                return dyn
    raise CheckpointError(f"{folder} is replaced all the time", fix="load when nobody saves to it")


def _stamp(folder: Path) -> tuple[int, int] | None:
    """What differs between any two saves to a folder."""
    try:
        status = current(folder, PROGRAM).stat()
        return status.st_ino, status.st_mtime_ns
    except OSError:
        return None


def _load(folder: Path, source: nn.Module | None) -> DynamicModel:
    description = read_description(folder)
    if source is None and description["graph"] is not None:
        dyn = _from_graph(folder, description)
    else:
        model = source if source is not None else _rebuild(description)
        dyn = DynamicModel(_replay(description, model))
    if dyn.program.fingerprint != description["fingerprint"]:
        raise CheckpointError(
            "replaying the checkpoint's passes on this source gives another program",
            where=f"history {description['history']}",
            fix="give the network (and the versions of its library) that the checkpoint was made from",
        )
    cast_again(dyn, description["casts"])
    load_weights(dyn, current(folder, description["weights"]))
    return dyn.eval()


def reduce_to_source(dyn: DynamicModel) -> dict[str, Tensor]:
    """The source's plain state dict: its names and shapes, the present values, nothing that passes added.

    ``model.load_state_dict(dc.reduce_to_source(dyn))`` loads strictly into the network that `dyn` was made
    from. Values are shared with `dyn`, as those of any state dict are. Raises SpecError for a deployed model.
    """
    return {name: value for name, value in _unfolded(dyn).state_dict().items() if not _is_added(name)}


def _is_added(name: str) -> bool:
    return name.startswith(f"{STATE_PREFIX}.")


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


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For files: contiguous, on the CPU, none of them within another."""
    places: set[int] = set()
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        shared = plain.untyped_storage().data_ptr() in places
        found[name] = plain.clone() if shared else plain
        places.add(plain.untyped_storage().data_ptr())
    return found


# -- program.json -----------------------------------------------------------------------------------


def _describe(dyn: DynamicModel, folder: Path, source: str | None, weights: str) -> dict[str, Any]:
    """The description; writes the graph and constants beside it."""
    graph, constants, remark = None, None, None
    try:
        network = describe_network(dyn.program)
        graph = GRAPH
        (folder / GRAPH).write_text(json.dumps(network, separators=(",", ":"), allow_nan=False) + "\n")
        held = source_constants(dyn.program)
        if held:
            constants = write_weights(folder, held, CONSTANTS)
    except ValueError as error:
        remark = f"no graph is stored: {error}"
    casts = describe_casts(dyn, dyn.program.captured)
    return {
        "format": FORMAT,
        "version": VERSION if casts else 2,
        "torch": torch.__version__,
        "source": source,
        "inputs": describe_inputs(dyn.program.signature),
        "history": list(dyn.history),
        "fingerprint": dyn.program.captured_fingerprint,
        "weights": weights,
        "graph": graph,
        "sizes": sizes_of(dyn.program) if graph else [],
        "constants": constants,
        "casts": casts,
        "remark": remark,
    }


def _rebuild(description: Mapping[str, Any]) -> nn.Module:
    source = description["source"]
    if source is None:
        raise CheckpointError(
            "the checkpoint does not say how its source is built, and it holds no graph of it",
            where=description.get("remark"),
            fix="pass it: load(dir, source=model)",
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
        program = capture(model, (), example_inputs(description["inputs"], device))
        return _with_passes(program, description)
    except DyncompileError as error:
        raise CheckpointError(
            f"the checkpoint's passes cannot be replayed on this source: {error}"
        ) from error


def _with_passes(program: Program, description: Mapping[str, Any]) -> Program:
    return apply_passes(program, [parse_spec(str(spec)) for spec in description["history"]])


def _from_graph(folder: Path, description: Mapping[str, Any]) -> DynamicModel:
    """The model of the stored graph. Raises CheckpointError."""
    path = current(folder, description["graph"])
    try:
        network: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    tensors = _source_tensors(folder, description)
    try:
        return DynamicModel(
            _with_passes(restore_network(network, description["inputs"], tensors), description)
        )
    except CheckpointError:
        raise
    except Exception as error:  # analysis and passes may fail in any way on a graph that nothing captured
        raise CheckpointError(
            f"the checkpoint's passes cannot be replayed on its stored graph: {error}",
            where=str(path),
            fix="give the source: load(dir, source=model)",
        ) from None


def _source_tensors(folder: Path, description: Mapping[str, Any]) -> dict[str, Tensor]:
    with open_weights(current(folder, description["weights"])) as file:
        kept = (name for name in file.shapes if not _is_added(name) or is_of_a_size(name))
        tensors = {name: file.get(name) for name in kept}
    if description["constants"] is not None:
        with open_weights(current(folder, description["constants"])) as file:
            tensors.update({name: file.get(name) for name in file.shapes})
    return as_captured(tensors, description["casts"])


# -- weights ----------------------------------------------------------------------------------------


def encode_weights(dyn: DynamicModel) -> bytes:
    """All persistent state as a safetensors file; tied tensors are in it once."""
    return encode_tensors(_plain(_distinct(dyn)[0]))


def load_weights(dyn: DynamicModel, path: Path) -> None:
    """Load weights that `save` wrote, a file or an index; raises CheckpointError with every misfit."""
    tensors, ties = _distinct(dyn)
    with open_weights(path) as file:
        problems = compare_keys({name: list(t.shape) for name, t in tensors.items()}, file.shapes)
        if problems:
            raise CheckpointError.of_all(f"{path} does not fit the model", problems)
        loaded = {name: file.get(name) for name in tensors}
    dyn.load_state_dict({**loaded, **{alias: loaded[name] for alias, name in ties.items()}}, strict=True)
