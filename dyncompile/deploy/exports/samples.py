"""Inputs that an export is tried on, and what files give for them compared with what models give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.export import Dim
from torch.utils import _pytree as pytree

from dyncompile.deploy.calling import has_tensor
from dyncompile.errors import ContractError
from dyncompile.program import Choice, Domain, Route
from dyncompile.signature import Signature

TOLERANCE = 1e-4
"""Largest difference, relative to the largest output: other kernels sum in another order."""
_ROUNDINGS = 4
"""That many roundings of an output's dtype are let pass where they are more: in bfloat16, one is 0.8 %."""

_NUMBERS = (Domain.GAINS, Domain.SIMPLEX, Domain.MIXTURE)
"""Domains whose rows are numbers that rounding moves."""


def random_inputs(
    signature: Signature, rows: int, dtypes: Mapping[torch.dtype, torch.dtype] | None = None
) -> list[Any]:
    """Flat graph inputs of `rows` samples: normal numbers; ones for integers, which are valid indices.

    Args:
        signature: of the model.
        rows: how many samples.
        dtypes: what became of floating dtypes since capture, see `precision.present_dtypes`.
    """
    random = torch.Generator().manual_seed(0)
    flat: list[Any] = []
    for leaf in signature.leaves:
        sizes = [rows if n is None else n for n in leaf.shape or ()]
        if leaf.shape is None:
            flat.append(leaf.constant)
        elif leaf.dtype is None or leaf.dtype.is_floating_point:
            captured = leaf.dtype or torch.float32
            flat.append(torch.randn(sizes, generator=random).to((dtypes or {}).get(captured, captured)))
        else:
            flat.append(torch.ones(sizes, dtype=leaf.dtype))
    return flat


def some_rows(signature: Signature, flat: Sequence[Any], count: int) -> list[Any]:
    """Flat inputs of `count` samples of a batch, one after the other and over again."""
    index = torch.arange(count) % signature.rows(flat)
    return [
        value[index] if leaf.batched else value for leaf, value in zip(signature.leaves, flat, strict=True)
    ]


def one_row(signature: Signature, flat: Sequence[Any], row: int) -> list[Any]:
    """Flat inputs of one sample of a batch."""
    return [
        value[row : row + 1] if leaf.batched else value
        for leaf, value in zip(signature.leaves, flat, strict=True)
    ]


def tensors_of(signature: Signature, flat: Sequence[Any]) -> list[Tensor]:
    """The flat inputs that are no constants of the capture."""
    return [value for leaf, value in zip(signature.leaves, flat, strict=True) if leaf.shape is not None]


def named_inputs(signature: Signature, flat: Sequence[Any]) -> dict[str, Any]:
    """Arguments by name, without those that hold no tensor."""
    return _named(signature, list(flat))


def free_batch(signature: Signature) -> dict[str, Any]:
    """For arguments by name: which sizes may differ."""
    return _named(signature, [{0: Dim.DYNAMIC} if leaf.batched else {} for leaf in signature.leaves])


def _named(signature: Signature, values: list[Any]) -> dict[str, Any]:
    positions: dict[str, Any] = pytree.tree_unflatten(list(range(len(values))), signature.structure)
    named: dict[str, Any] = pytree.tree_unflatten(values, signature.structure)
    return {name: value for name, value in named.items() if has_tensor(positions[name], signature)}


def output_names(signature: Signature) -> list[str]:
    """Names of the flat outputs, all different: ``output`` where there is one, else with its place in it."""
    count = signature.out_structure.num_leaves
    whole = pytree.tree_unflatten(list(range(count)), signature.out_structure)
    names = dict[int, str]()
    for path, position in pytree.tree_flatten_with_path(whole)[0]:
        words = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in path]
        names[position] = "_".join(words if words and not words[0].isdigit() else ("output", *words))
    return distinct([names[position] for position in range(count)])


def distinct(names: Sequence[str], taken: Iterable[str] = ()) -> list[str]:
    """The names, with a number where one is taken or comes again."""
    used, found = set(taken), list[str]()
    for name in names:
        own, number = name, 1
        while own in used or (number > 1 and own in names):
            number += 1
            own = f"{name}_{number}"
        used.add(own)
        found.append(own)
    return found


def difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Largest absolute difference of flat outputs; infinities and NaNs are as they should be, or infinite.

    Raises:
        ContractError: other shapes, no finite output, or further apart than rounding explains.
    """
    if [t.shape for t in expected] != [t.shape for t in found]:
        raise ContractError("the exported file returns outputs of other shapes; it was not written")
    pairs = [(a.double(), b.double()) for a, b in zip(expected, found, strict=True) if a.numel()]
    if pairs and not any(bool(a.isfinite().any()) for a, _ in pairs):
        raise ContractError(
            "the model gives no finite number to compare the exported file by; it was not written",
            fix="give samples as inputs=",
        )
    apart = max((_apart(a, b) for a, b in pairs), default=0.0)
    scale = max((float(a.nan_to_num(0, 0, 0).abs().max()) for a, _ in pairs), default=0.0)
    if not apart <= _tolerance(expected) * scale:
        raise ContractError(f"the exported file differs by {apart:.3g}; it was not written")
    return apart


def _tolerance(values: Sequence[Tensor]) -> float:
    coarsest = max((torch.finfo(t.dtype).eps for t in values if t.is_floating_point()), default=0.0)
    return max(TOLERANCE, _ROUNDINGS * coarsest)


def _apart(a: Tensor, b: Tensor) -> float:
    same = (a == b) | (a.isnan() & b.isnan())
    return float((a - b).abs().nan_to_num(torch.inf, torch.inf).masked_fill(same, 0).max())


def check_route(choices: Mapping[str, Choice], expected: Route, found: Route) -> None:
    """Raises ContractError where two routes differ; numbers may by rounding."""
    tolerance = _tolerance(list(expected.values()))
    wrong = [
        name
        for name, rows in expected.items()
        if not torch.allclose(rows, found[name], rtol=0, atol=tolerance * (choices[name].domain in _NUMBERS))
    ]
    if wrong:
        raise ContractError.of_all(
            "the exported file decides otherwise; it was not written",
            [f"{name}: {_row(found[name])}, not {_row(expected[name])}" for name in wrong],
            fix="inputs whose decision is a tie may go either way by rounding: give others as inputs=",
        )


def _row(rows: Tensor) -> str:
    numbers = cast("list[float]", rows[0].tolist())  # pyright: ignore
    return ", ".join(f"{number:g}" for number in numbers)
