"""A folder for servers: a router, the static network of every route, and a manifest.

    router.onnx        one sample -> ``route.CHOICE`` [1, width], one-hot: what decides, and nothing after it
    route-COLUMNS.onnx any batch -> the source's outputs, for samples of that route
    manifest.json      routes with columns, MACs, files and their sha256; inputs, outputs, choices

A server asks the router for each request, and runs requests of one route together. That needs finitely many
routes: every choice that is decided by a net is one-hot.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dyncompile.deploy.exports.formats import Call, write_file
from dyncompile.deploy.exports.program import one_sample
from dyncompile.deploy.exports.samples import (
    check_route,
    difference,
    named_inputs,
    one_row,
    output_names,
    tensors_of,
)
from dyncompile.deploy.exports.static import Written, write_static
from dyncompile.deploy.specialize import specialize
from dyncompile.errors import DyncompileError, SpecError
from dyncompile.files import new_directory
from dyncompile.policies import Policy
from dyncompile.program import Choice, Domain
from dyncompile.runtime.model import DynamicModel

ROUTES = 64
"""So many static networks a bundle may hold."""
ROUTER, MANIFEST = "router.onnx", "manifest.json"
VERSION = 1


def write_bundle(dyn: DynamicModel, policy: Policy, samples: list[Any], path: Path) -> Written:
    """Write a bundle to a folder that does not exist yet; see `dyncompile.export`.

    Raises:
        SpecError: a decision net decides something that is not one-hot, or there are too many routes.
        ContractError: a file gives something else than the model. Nothing is written.
        DyncompileError: something has the folder's name, or it cannot be written.
    """
    choices = _routed(dyn)
    if path.exists():
        raise DyncompileError("a bundle is a new folder, and this exists", where=str(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_directory(path) as aside:
            apart = _fill(dyn, policy, samples, choices, aside)
            size = sum(file.stat().st_size for file in aside.iterdir())
    except OSError as error:
        raise DyncompileError(f"the bundle cannot be written: {error}", where=str(path)) from None
    return Written(path, size, apart)


def _routed(dyn: DynamicModel) -> list[Choice]:
    """The choices that decision nets decide. Raises SpecError."""
    choices = [dyn.choices[name] for name in dyn.gated]
    wrong = [f"{one.name}: {one.domain.value}" for one in choices if one.domain is not Domain.ONE_HOT]
    if wrong or not choices:
        raise SpecError(
            "a bundle has a static network per route, so its decisions are one-hot; "
            + (f"here are {', '.join(wrong)}" if wrong else "no decision net is here"),
            fix='export the dynamic model itself: format="onnx"',
        )
    count = 1
    for one in choices:
        count *= one.width
    if count > ROUTES:
        raise SpecError(
            f"{count} routes are too many for a bundle, which holds {ROUTES} static networks",
            fix='fewer columns or coarser choices (per=model), or format="onnx"',
        )
    return choices


def _fill(
    dyn: DynamicModel, policy: Policy, samples: list[Any], choices: list[Choice], folder: Path
) -> float:
    worst = 0.0
    routes: list[dict[str, Any]] = []
    for columns in _combinations(choices):
        file = folder / f"route-{'-'.join(map(str, columns.values()))}.onnx"
        route = dyn.route(columns)
        written = write_static(specialize(dyn, route), dyn.program.signature, file, "onnx", samples)
        worst = max(worst, written.difference)
        routes.append({"columns": columns, "macs": float(dyn.macs(route)[0]), **_described(file)})
    _write_router(dyn, policy, samples, folder / ROUTER)
    worst = max(worst, _checked(dyn, policy, samples))
    (folder / MANIFEST).write_text(json.dumps(_manifest(dyn, choices, routes, folder), indent=2) + "\n")
    return worst


def _combinations(choices: list[Choice]) -> Iterator[dict[str, int]]:
    for columns in itertools.product(*(range(one.width) for one in choices)):
        yield dict(zip((one.name for one in choices), columns, strict=True))


def _write_router(dyn: DynamicModel, policy: Policy, samples: list[Any], path: Path) -> None:
    """Write what decides, and compare its decisions with the model's."""
    signature = dyn.program.signature
    one = one_sample(dyn.program, policy, decisions_only=True)
    call = Call(named_inputs(signature, one_row(signature, samples, 0)), None, tuple(one.outputs(())))
    run = write_file(one.module, call, path, "onnx")
    for row in range(signature.rows(samples)):
        flat = one_row(signature, samples, row)
        with torch.no_grad():
            route = dyn.execute(flat, 1, policy, "sparse").route
        found = run(tensors_of(signature, flat))
        check_route(dyn.choices, route, dict(zip(one.choices, found, strict=True)))


@torch.no_grad()
def _checked(dyn: DynamicModel, policy: Policy, samples: list[Any]) -> float:
    """How far the static networks of the samples' routes are from the model: largest difference."""
    signature, worst = dyn.program.signature, 0.0
    for row in range(signature.rows(samples)):
        flat = one_row(signature, samples, row)
        record = dyn.execute(flat, 1, policy, "sparse")
        static = specialize(dyn, record.route)
        found, expected = (
            [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]
            for out in (static(**named_inputs(signature, flat)), record.output)
        )
        worst = max(worst, difference(expected, found))
    return worst


def _manifest(
    dyn: DynamicModel, choices: list[Choice], routes: list[dict[str, Any]], folder: Path
) -> Mapping[str, Any]:
    signature = dyn.program.signature
    return {
        "version": VERSION,
        "history": list(dyn.history),
        "inputs": [
            {"path": leaf.path, "shape": list(leaf.shape), "dtype": str(leaf.dtype).removeprefix("torch.")}
            for leaf in signature.leaves
            if leaf.shape is not None
        ],
        "outputs": output_names(signature),
        "choices": [{"name": one.name, "labels": list(one.labels), "width": one.width} for one in choices],
        "source_macs": dyn.static_macs,
        "decision_macs": dyn.decision_macs,
        "router": _described(folder / ROUTER),
        "routes": routes,
    }


def _described(file: Path) -> dict[str, Any]:
    content = file.read_bytes()
    return {"file": file.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
