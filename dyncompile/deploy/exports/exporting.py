"""``export``: a dynamic model, or one route of it, as a file that is run and compared before it is there."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dyncompile.deploy.exports.bundle import write_bundle
from dyncompile.deploy.exports.formats import BUNDLE, FORMATS, Call, check_format, write_file
from dyncompile.deploy.exports.program import one_sample
from dyncompile.deploy.exports.samples import (
    check_route,
    difference,
    named_inputs,
    one_row,
    output_names,
    random_inputs,
    tensors_of,
)
from dyncompile.deploy.exports.static import Written, write_aside, write_static
from dyncompile.deploy.specialize import specialize
from dyncompile.errors import DyncompileError, InputError, SpecError
from dyncompile.policies import Learned, Policy
from dyncompile.precision import present_dtypes
from dyncompile.program import Route
from dyncompile.runtime.model import DynamicModel, as_dynamic
from dyncompile.state import state_tensors
from dyncompile.zoo.inputs import as_inputs


def export(
    dyn: DynamicModel,
    path: str | Path,
    format: str = "onnx",
    *,
    route: Route | None = None,
    inputs: Any = None,
) -> Written:
    """Write a model for other runtimes. The file is run, and compared with the model, before it is there.

    Without `route` the file holds the dynamic model for **one sample** (batch 1): its decision nets decide,
    and what they drop does not run, by conditions (``torch.cond``, ONNX ``If``); no custom operators. Widths
    and sizes have a part of the program per column, and share their weights; channels that are kept one by
    one are multiplied by their gains, which saves no time. It gives the source's outputs and the decisions:
    ONNX outputs are named ``output`` (or by their place in the source's output) and ``route.CHOICE``; a .pt2
    gives ``(output, {choice: row})``. With `route` it is the static network of that route, at any batch size.

    A "bundle" is a new folder for servers: ``router.onnx`` decides for one sample, ``route-*.onnx`` are the
    static networks of all routes at any batch size, ``manifest.json`` says which is which (columns, MACs,
    sha256). Every decision is one-hot there.

    Args:
        dyn: in evaluation mode. Its policy decides; it stays as it is.
        path: the file, which is replaced as a whole; or a bundle's folder, which must not exist.
        format: "onnx", "pt2" or "bundle". Whoever reads a .pt2 with ``torch.export.load`` unpickles.
        route: one row per choice, see `specialize`. Not for bundles.
        inputs: a batch of samples to compare on, as the model is called (a tensor, a tuple, or a mapping of
            arguments by name); each runs alone, with `route` all together. Without it, three random ones.

    Returns:
        The path, its bytes, and the largest absolute difference of outputs.

    Raises:
        SpecError: an unknown format, a model in training mode, a policy without a rule, onnx not installed.
        InputError: `inputs` do not fit the model.
        ContractError: outputs differ by more than 1e-4 of the largest (in half precision 4 roundings), or
            decisions do. Nothing is written.
        DyncompileError: the exporter or the runtime refuses the network, or the file cannot be written.
    """
    dyn, target = as_dynamic(dyn), Path(path)
    _check(dyn, target, format)
    here = on_cpu(dyn)
    samples = batch_of(here, inputs)
    if route is not None:
        check_format(format)
        return write_static(specialize(here, route), dyn.program.signature, target, format, samples)
    policy = rule_of(dyn.policy)
    if format == BUNDLE:
        return write_bundle(here, policy, samples, target)
    return write_aside(target, lambda made: _write(here, policy, samples, made, format))


def _check(dyn: DynamicModel, path: Path, format: str) -> None:
    check_format(format, (*FORMATS, BUNDLE))
    if dyn.training:
        raise SpecError("the model is in training mode", fix="call dyn.eval() first: files hold that graph")
    if path.is_dir() and format != BUNDLE:
        raise DyncompileError(
            "a directory has the name of the file", where=str(path), fix="name another file"
        )


def on_cpu(dyn: DynamicModel) -> DynamicModel:
    """The model itself where it lies on the CPU, else a copy there."""
    devices = {tensor.device.type for tensor in dyn.state_dict().values()}
    return dyn if devices <= {"cpu"} else copy.deepcopy(dyn).cpu().eval()


def rule_of(policy: Policy) -> Policy:
    """A policy that can be part of a program. Raises SpecError."""
    if isinstance(policy, Learned) and (policy.noise or not policy.hard):
        raise SpecError(
            f"{policy} cannot be exported: a program takes hard decisions without noise",
            fix="set dyn.policy = Learned()",
        )
    return policy


def batch_of(dyn: DynamicModel, inputs: Any) -> list[Any]:
    """Flat inputs to compare on. Raises InputError."""
    signature = dyn.program.signature
    if inputs is None:
        program = dyn.program
        dtypes = present_dtypes(program.captured, state_tensors(program.state))
        return random_inputs(signature, 3, dtypes)
    args, kwargs = as_inputs(inputs)
    flat = signature.flatten(args, kwargs)
    if not signature.rows(flat):
        raise InputError("there is no sample to compare on", fix="give a batch of at least one")
    return flat


def _write(dyn: DynamicModel, policy: Policy, samples: list[Any], path: Path, format: str) -> float:
    signature = dyn.program.signature
    one = one_sample(dyn.program, policy)
    names = tuple(one.outputs(output_names(signature)))
    call = Call(named_inputs(signature, one_row(signature, samples, 0)), None, names)
    run = write_file(one.module, call, path, format)
    worst = 0.0
    for row in range(signature.rows(samples)):
        flat = one_row(signature, samples, row)
        with torch.no_grad():
            record = dyn.execute(flat, 1, policy, "sparse")
        expected = [leaf for leaf in pytree.tree_leaves(record.output) if isinstance(leaf, Tensor)]
        found = run(tensors_of(signature, flat))
        check_route(dyn.choices, record.route, dict(zip(one.choices, found[len(expected) :], strict=True)))
        worst = max(worst, difference(expected, found[: len(expected)]))
    return worst
