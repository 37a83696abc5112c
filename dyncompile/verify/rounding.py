"""Two ways of computing one value: apart by rounding, or by a fault.

    fault     does not care for the precision
    rounding  is 2^29 times smaller in float64; in float32 it is of the size of either way's own error

A deep network may magnify rounding as it magnifies its input: of a randomly initialized MobileNetV2 or
EfficientNet-B0, float32 outputs are 1e-4 (relative) from float64's, and the source alone, image by image
instead of in a batch, is as far from itself. So where two ways are further apart than a tolerance, both are
computed again in float64. It is rounding if they are `PRECISE` times nearer there than was allowed, and if in
float32 they are apart by no more than `OWN` times what the expected one has for an error, against float64:
twice that if both err alike, the rest is for largest differences of few outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from dyncompile.verify.compare import difference, plain, scale
from dyncompile.verify.report import Check
from dyncompile.verify.subject import Subject

PRECISE = 1e5
OWN = 8.0

Ways = Callable[[Subject], tuple[list[Any], list[Any]]]
"""Expected values and those that should equal them; drawn alike at every call."""


def check_alike(name: str, subject: Subject, ways: Ways, tolerance: float, detail: str) -> Check:
    """Whether two ways agree to a tolerance, relative to the largest value of each, or up to rounding."""
    expected, actual = ways(subject)
    worst, share = max(map(difference, expected, actual), default=0.0), _apart(expected, actual)
    if share <= tolerance:
        return Check(name, True, worst, detail)
    passed, remark = _is_rounding(subject, ways, tolerance, expected, share)
    return Check(name, passed, worst, f"{detail}; {remark}")


def _is_rounding(
    subject: Subject, ways: Ways, tolerance: float, expected: list[Any], share: float
) -> tuple[bool, str]:
    try:
        precise, other = ways(_in_float64(subject))
    except Exception as error:  # a model that fixes its dtype, or a device without float64
        return False, f"float64, which would tell rounding from a fault, is refused ({type(error).__name__})"
    left, own = _apart(precise, other), _apart(precise, [_double(one) for one in expected])
    remark = f"{share:.1e} apart, {left:.1e} in float64; float32's own error is {own:.1e}"
    return left <= tolerance / PRECISE and share <= OWN * own, remark


def _apart(expected: list[Any], actual: list[Any]) -> float:
    """The largest difference, relative to the largest magnitude of what is expected in its place."""
    pairs = zip(expected, actual, strict=True)
    return max((difference(a, b) / scale(a) for a, b in pairs), default=0.0)


def _in_float64(subject: Subject) -> Subject:
    args, kwargs = _double((subject.args, subject.kwargs))
    dyn, reference = copy.deepcopy(subject.dyn).double(), copy.deepcopy(subject.reference).double()
    return Subject(dyn, reference, args, kwargs, subject.routes, subject.source)


def _double(value: Any) -> Any:
    """A structure whose floating-point tensors are float64."""
    return pytree.tree_map(_leaf_in_float64, plain(value))


def _leaf_in_float64(leaf: object) -> object:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
