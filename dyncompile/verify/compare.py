"""Numbers about two structures of tensors, and what they are compared by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from dyncompile.signature import field_names

RELATIVE_TOLERANCE = 1e-5
"""For results that take other kernels (contiguous against strided weights), not for full capacity."""
MASKED_TOLERANCE = 1e-4
"""For sums over masked positions against sums over fewer of them."""


def difference(expected: Any, actual: Any) -> float:
    """Largest absolute difference between two structures of tensors; infinite where they do not match."""
    (left, one), (right, other) = pytree.tree_flatten(plain(expected)), pytree.tree_flatten(plain(actual))
    if _form(one) != _form(other):
        return float("inf")
    return max((_difference(a, b) for a, b in zip(left, right, strict=True)), default=0.0)


def _form(spec: pytree.TreeSpec) -> Any:
    """A structure in lists and dicts; a class with named fields is a dict, as it is in a checkpoint."""
    if spec.is_leaf():
        return None
    entries = [_form(child) for child in spec.children()]
    names = field_names(spec)
    return (spec.type, entries) if names is None else dict(zip(names, entries, strict=True))


def _difference(a: Any, b: Any) -> float:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return 0.0 if type(a) is type(b) and a == b else float("inf")
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    a, b = a.detach(), b.detach()
    if torch.equal(a, b) or a.numel() == 0:
        return 0.0
    apart = float((a.double() - b.double()).abs().max())
    same_nans = torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())
    return 0.0 if same_nans else apart if apart == apart else float("inf")


def plain(value: Any) -> Any:
    """A mapping of any class as a dict, whose leaves pytree knows; other values as they are."""
    return dict(cast("Mapping[Any, Any]", value)) if isinstance(value, Mapping) else value


def scale(value: Any) -> float:
    """Largest magnitude in a structure of tensors, at least 1e-12."""
    floats = [
        v
        for v in pytree.tree_leaves(plain(value))
        if isinstance(v, Tensor) and v.is_floating_point() and v.numel()
    ]
    return max([float(v.abs().max()) for v in floats], default=1.0) or 1e-12


def with_rows(value: Tensor, size: int) -> Tensor:
    """`size` rows, repeated or cut."""
    repeats = -(-max(size, 1) // max(value.shape[0], 1))
    return torch.cat([value] * repeats)[:size].clone()


def row_of(out: Any, row: int, size: int) -> list[Tensor]:
    """The part of row `row` in every tensor of an output of `size` rows."""
    leaves = [v for v in pytree.tree_leaves(plain(out)) if isinstance(v, Tensor)]
    return [v.narrow(0, row * (v.shape[0] // size), v.shape[0] // size) for v in leaves if v.dim()]


def count_macs(run: Callable[[], Any], *, vectors: bool = False) -> float:
    """MACs of a call by torch's own counter.

    Gradients on and unfused attention, or it misses attention on CPU. Products with `vectors`, which it does
    not know, are in static networks' spectral norms, and in how dynamic ones look up their rows' gains.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_VECTOR_FLOPS if vectors else {})
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        run()
    return counter.get_total_flops() / 2


def _of_factors(first: Sequence[int], *others: Any, **options: Any) -> int:
    """Flops of a product with a vector: every element of the other factor is read once."""
    return 2 * prod(first)


def _of_addends(addend: Sequence[int], first: Sequence[int], *others: Any, **options: Any) -> int:
    return _of_factors(first)


_VECTOR_FLOPS: dict[Any, Any] = {
    torch.ops.aten.mv: _of_factors,
    torch.ops.aten.dot: _of_factors,
    torch.ops.aten.addmv: _of_addends,
}


def step(module: nn.Module, seed: int, run: Callable[[], Any]) -> Any:
    """Forward and backward of the mean square of all outputs under one seed; returns the output.

    A frozen module, or one that returns integers, has no backward.
    """
    module.zero_grad()
    torch.manual_seed(seed)  # pyright: ignore
    out = run()
    loss = mean_square(out)
    if loss is not None:
        loss.backward()  # pyright: ignore
    return out


def mean_square(out: Any) -> Tensor | None:
    """The sum over tensors of their mean squares; None where none of them has a gradient."""
    floats = [v for v in pytree.tree_leaves(plain(out)) if isinstance(v, Tensor) and v.requires_grad]
    return torch.stack([v.float().square().mean() for v in floats]).sum() if floats else None
