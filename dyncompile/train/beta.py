"""The distribution function of Beta(a, b), elementwise, with a gradient: torch has none.

    F(x) = 1/B(a, b) int_0^x t^(a-1) (1-t)^(b-1) dt = x^a / B(a, b) int_0^1 u^(a-1) (1 - x u)^(b-1) du

For x <= 1/2 the last integrand is u^(a-1) times a function that is smooth on [0, 2), so that Gauss-Jacobi
quadrature, whose nodes have the factor u^(a-1) built in, is exact up to float64 rounding; larger x take
1 - F(1 - x) with a and b exchanged. Nodes and weights are eigenvalues and first components of eigenvectors of
the matrix of the recurrence of the Jacobi polynomials (Golub and Welsch, 1969).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

LARGEST = 50.0
"""Parameter up to which F is exact to twelve digits."""

_NODES = 16

_STEEPEST, _FLATTEST = 100.0, 1e-3
"""Bounds of the density in gradients: those of the code of batch shaping (Qualcomm, 2023)."""


def beta_cdf(x: Tensor, a: float, b: float) -> Tensor:
    """F(x) for x in [0, 1], any shape, as float64; a and b lie in (0, `LARGEST`].

    The gradient is the density, bounded to [0.001, 100]: it is infinite at the ends for a or b below 1.
    """
    return cast(Any, _BetaCdf).apply(x, a, b)


class _BetaCdf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: float, b: float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """F(x)."""
        ctx.save_for_backward(x)
        ctx.shape = a, b
        wide = x.double()
        low, found = wide <= 0.5, torch.empty_like(wide)
        found[low] = _lower(wide[low], a, b)
        found[~low] = 1 - _lower(1 - wide[~low], b, a)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The density times the gradient."""
        (x,), (a, b) = ctx.saved_tensors, ctx.shape
        density = _density(x.double(), a, b).clamp(_FLATTEST, _STEEPEST)
        return (gradient * density).to(x.dtype), None, None


def _lower(x: Tensor, a: float, b: float) -> Tensor:
    """F(x) of numbers up to 1/2."""
    total = torch.zeros_like(x)
    for node, weight in _quadrature(a):
        total += weight * ((b - 1) * torch.log1p(-node * x)).exp()
    return total * (a * x.log() - _log_beta(a, b)).exp()


def _density(x: Tensor, a: float, b: float) -> Tensor:
    """x^(a-1) (1-x)^(b-1) / B(a, b); a large number instead of infinity."""
    tiny = torch.finfo(x.dtype).tiny
    logs = (a - 1) * x.clamp(min=tiny).log() + (b - 1) * (1 - x).clamp(min=tiny).log()
    return (logs - _log_beta(a, b)).exp()


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


@cache
def _quadrature(a: float) -> tuple[tuple[float, float], ...]:
    """(node, weight) of int_0^1 u^(a-1) f(u) du."""
    q, n = a - 1, np.arange(1.0, _NODES)
    diagonal = np.concatenate([[q / (q + 2)], q**2 / ((2 * n + q) * (2 * n + q + 2))])
    beside = 2 * n * (n + q) / (2 * n + q) / np.sqrt((2 * n + q) ** 2 - 1)
    values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
    pairs = zip((1 + values) / 2, vectors[0] ** 2 / a, strict=True)
    return tuple((float(node), float(weight)) for node, weight in pairs)
