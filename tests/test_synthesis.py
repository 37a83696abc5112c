"""Layers with a kernel per sample: every way of running them computes what a loop by hand does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from dyncompile.program import Decision
from dyncompile.runtime import synthesis
from dyncompile.runtime.synthesis import basis_conv2d, basis_linear, synthesize

LAYERS = [  # channels, outputs, kernel, stride, padding, dilation, groups
    (6, 8, 3, 1, 1, 1, 1),
    (6, 8, 3, 2, 1, 1, 2),
    (6, 6, 3, 1, 2, 2, 6),
    (6, 8, 1, 1, 0, 1, 1),
    (6, 8, 1, 2, 0, 1, 1),
    (6, 8, 1, 1, 1, 1, 1),
    (6, 9, 1, 1, 0, 1, 3),
]


def by_hand(x: Tensor, weight: Tensor, bases: Tensor, rows: Tensor, layer: Any) -> Tensor:
    """Row by row, with kernels that are summed in a loop."""
    out: list[Tensor] = []
    for i, row in enumerate(rows):
        kernel = weight.clone()
        for a, basis in zip(row, bases, strict=True):
            kernel = kernel + a * basis
        out.append(layer(x[i : i + 1], kernel))
    return torch.cat(out)


def conv_case(layer: tuple[int, ...], rows: int) -> tuple[Tensor, ...]:
    channels, outputs, kernel, *_, groups = layer
    shape = (outputs, channels // groups, kernel, kernel)
    x = torch.randn(rows, channels, 7, 6, dtype=torch.float64)
    weight, bases = torch.randn(shape).double(), torch.randn(3, *shape).double()
    return x, weight, bases, torch.randn(rows, 5).double(), torch.randn(outputs).double()


def options_of(layer: tuple[int, ...]) -> Any:
    """Stride, padding, dilation, groups."""
    *_, stride, padding, dilation, groups = layer
    return [stride, stride], [padding, padding], [dilation, dilation], groups


@pytest.mark.parametrize("rows", [0, 1, 2, 5])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("bound", [10**9, 1, 200])
def test_convolution_equals_a_loop(
    layer: tuple[int, ...], rows: int, bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthesis, "CPU_KERNELS", bound)
    x, weight, bases, coefficients, bias = conv_case(layer, rows)
    options = options_of(layer)
    kernels = synthesize(weight, bases, Decision(coefficients, -1), 1, 0.0)
    actual = basis_conv2d(x, kernels, bias, *options)
    if not rows:
        assert actual.shape == F.conv2d(x, weight, bias, *options).shape
        return
    expected = by_hand(x, weight, bases, coefficients[:, 1:4], lambda x, w: F.conv2d(x, w, bias, *options))
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@settings(max_examples=30)
@given(
    rows=st.integers(1, 4),
    inner=st.integers(1, 3),
    tokens=st.integers(1, 4),
    start=st.integers(0, 2),
    bound=st.sampled_from([1, 40, 10**9]),
)
def test_linear_equals_a_loop(rows: int, inner: int, tokens: int, start: int, bound: int) -> None:
    x = torch.randn(rows * inner, tokens, 5).double()
    weight, bases = torch.randn(4, 5).double(), torch.randn(2, 4, 5).double()
    decision, bias = Decision(torch.randn(rows, 4).double(), -1), torch.randn(4).double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthesis, "CPU_KERNELS", bound)
        actual = basis_linear(x, synthesize(weight, bases, decision, start, 0.0), bias)
    by_row = x.unflatten(0, (rows, inner))
    used = decision.rows[:, start : start + 2]
    expected = by_hand(by_row, weight, bases, used, lambda x, w: F.linear(x, w, bias)).flatten(0, 1)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_equal_rows_share_a_kernel_bit_for_bit() -> None:
    x, weight, bases, coefficients, bias = (t.float() for t in conv_case(LAYERS[0], 4))
    same = Decision(coefficients[:1].expand(4, -1), -1)
    kernels = synthesize(weight, bases, same, 0, 0.0)
    assert kernels.shared
    args: Any = ([1, 1], [1, 1], [1, 1], 1)
    assert torch.equal(basis_conv2d(x, kernels, bias, *args), F.conv2d(x, kernels.single(), bias, *args))
    zeros = synthesize(weight, bases.fill_(torch.inf), Decision(torch.zeros(4, 5), -1), 0, 0.0)
    assert torch.equal(basis_conv2d(x, zeros, bias, *args), F.conv2d(x, weight, bias, *args))


def test_zero_bases_leave_every_kernel_bit_equal() -> None:
    x, weight, bases, coefficients, bias = (t.float() for t in conv_case(LAYERS[0], 4))
    kernels = synthesize(weight, bases.zero_(), Decision(coefficients, -1), 0, 0.0)
    assert all(torch.equal(kernels.single(row), weight) for row in range(4))
    args: Any = ([1, 1], [1, 1], [1, 1], 1)
    actual, expected = basis_conv2d(x, kernels, bias, *args), F.conv2d(x, weight, bias, *args)
    assert float((actual - expected).abs().max()) <= 1e-6 * float(expected.abs().max())


def test_rounded_rows_share_kernels() -> None:
    x, weight, bases, _, bias = conv_case(LAYERS[0], 6)
    rows = torch.tensor([0.01, 0.49, 0.52, 0.02, 0.51, 0.03]).double()[:, None].expand(-1, 3)
    args: Any = ([1, 1], [1, 1], [1, 1], 1)
    actual = basis_conv2d(x, synthesize(weight, bases, Decision(rows, -1), 0, 0.5), bias, *args)
    rounded = torch.tensor([0, 0.5, 0.5, 0, 0.5, 0]).double()[:, None].expand(-1, 3)
    expected = by_hand(x, weight, bases, rounded, lambda x, w: F.conv2d(x, w, bias, *args))
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_rounding_lets_gradients_through() -> None:
    x, weight, bases, coefficients, bias = conv_case(LAYERS[0], 3)
    coefficients.requires_grad_()
    kernels = synthesize(weight, bases, Decision(coefficients, -1), 0, 0.5)
    basis_conv2d(x, kernels, bias, [1, 1], [1, 1], [1, 1], 1).square().sum().backward()
    assert coefficients.grad is not None
    assert bool(coefficients.grad[:, :3].all())


@pytest.mark.parametrize("bound", [1, 10**9])
@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("layer", [LAYERS[0], LAYERS[3]], ids=str)
def test_gradients_are_those_of_a_loop(
    layer: tuple[int, ...], equal: bool, bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthesis, "CPU_KERNELS", bound)
    x, weight, bases, coefficients, bias = conv_case(layer, 3)
    rows = (coefficients[:1].repeat(3, 1) if equal else coefficients)[:, :3].clone()
    options = options_of(layer)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bases, rows, bias)]
    kernels = synthesize(leaves[1], leaves[2], Decision(leaves[3], -1), 0, 0.0)
    actual = basis_conv2d(leaves[0], kernels, leaves[4], *options)
    mine = torch.autograd.grad(actual.square().sum(), leaves)
    others = [t.clone().requires_grad_() for t in (x, weight, bases, rows, bias)]
    expected = by_hand(
        others[0], others[1], others[2], others[3], lambda x, w: F.conv2d(x, w, others[4], *options)
    )
    for one, same in zip(mine, torch.autograd.grad(expected.square().sum(), others), strict=True):
        torch.testing.assert_close(one, same, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("layer", "kernels", "parts"),
    [
        (LAYERS[0], 2, [(7, 2)] * 4),  # two whole kernels fit: seven rows share two outputs' instead
        (LAYERS[0], 10, [(7, 8)]),
        (LAYERS[1], 2, [(2, 8), (2, 8), (2, 8), (1, 8)]),  # outputs of several groups stay together
    ],
    ids=str,
)
def test_no_more_kernels_are_held_than_the_bound_says(
    layer: tuple[int, ...], kernels: int, parts: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []

    def noting(x: Tensor, kernels: Tensor, bias: Tensor | None, **options: Any) -> Tensor:
        seen.append((kernels.shape[0], kernels.shape[1]))
        return original(x, kernels, bias, **options)

    original = synthesis._grouped  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(synthesis, "_grouped", noting)
    x, weight, bases, coefficients, bias = conv_case(layer, 7)
    bound = kernels * weight.numel() + 1
    monkeypatch.setattr(synthesis, "CPU_KERNELS", bound)
    mixed = synthesize(weight, bases, Decision(coefficients, -1), 0, 0.0)
    basis_conv2d(x, mixed, bias, *options_of(layer))
    assert seen == parts
    assert max(rows * outputs for rows, outputs in seen) * weight[0].numel() <= bound


def test_many_rows_of_large_kernels_are_cut_along_both_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bases, coefficients, bias = conv_case(LAYERS[0], 19)
    monkeypatch.setattr(synthesis, "CPU_KERNELS", weight.numel())
    kernels = synthesize(weight, bases, Decision(coefficients, -1), 1, 0.0)
    options = options_of(LAYERS[0])
    expected = by_hand(x, weight, bases, coefficients[:, 1:4], lambda x, w: F.conv2d(x, w, bias, *options))
    torch.testing.assert_close(basis_conv2d(x, kernels, bias, *options), expected, rtol=1e-10, atol=1e-10)
