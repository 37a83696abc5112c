"""Layers with a kernel per sample: every way of running them computes what a loop by hand does."""

from __future__ import annotations

from dataclasses import replace
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


@pytest.mark.parametrize("small_map", [0, 64], ids=["grouped", "unfolded"])
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
    layer: tuple[int, ...],
    kernels: int,
    parts: list[tuple[int, int]],
    small_map: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[int, int]] = []
    unfolds = small_map and layer[-1] == 1
    name = "_columns" if unfolds else "_grouped"
    original: Any = getattr(synthesis, name)

    def noting(x: Tensor, kernels: Tensor, bias: Tensor | None, **options: Any) -> Tensor:
        seen.append((kernels.shape[0], kernels.shape[1]))
        return original(x, kernels, bias, **options)

    monkeypatch.setattr(synthesis, name, noting)
    monkeypatch.setattr(synthesis, "SMALL_MAP", small_map)
    x, weight, bases, coefficients, bias = conv_case(layer, 7)
    bound = kernels * weight.numel() + 1
    monkeypatch.setattr(synthesis, "CPU_KERNELS", bound)
    mixed = synthesize(weight, bases, Decision(coefficients, -1), 0, 0.0)
    basis_conv2d(x, mixed, bias, *options_of(layer))
    assert seen == parts
    assert max(rows * outputs for rows, outputs in seen) * weight[0].numel() <= bound


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 40])
@pytest.mark.parametrize("simplex", [True, False])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
@torch.no_grad()
def test_whole_kernels_mix_like_differences(layer: tuple[int, ...], simplex: bool, rows: int) -> None:
    x, weight, bases, coefficients, bias = conv_case(layer, rows)
    own = coefficients[:, :3].softmax(1) if simplex else coefficients[:, :3]
    options = options_of(layer)
    decision = Decision(own, -1)
    expected = basis_conv2d(x, synthesize(weight, bases, decision, 0, 0.0), bias, *options)
    kernels = synthesize(weight, weight + bases, decision, 0, 0.0, True)
    torch.testing.assert_close(basis_conv2d(x, kernels, bias, *options), expected, rtol=1e-10, atol=1e-10)
    none = synthesize(weight, weight + bases, Decision(torch.zeros_like(own), -1), 0, 0.0, True)
    assert torch.equal(basis_conv2d(x, none, bias, *options), F.conv2d(x, weight, bias, *options))


@torch.no_grad()
def test_whole_kernels_of_coefficients_that_sum_to_one_leave_the_weight_unread() -> None:
    x, weight, bases, coefficients, bias = conv_case(LAYERS[0], 4)
    rows = coefficients[:, :3].float().softmax(1).double()  # as exact as a network's softmax is
    kernels = synthesize(weight.fill_(torch.nan), bases, Decision(rows, -1), 0, 0.0, True)
    for count in (1, 4):
        given = basis_conv2d(
            x[:count], kernels if count > 1 else _first(kernels), bias, *options_of(LAYERS[0])
        )
        assert not bool(given.isnan().any())


def _first(kernels: synthesis.Kernels) -> synthesis.Kernels:
    return replace(kernels, coefficients=kernels.coefficients[:1])


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@torch.no_grad()
def test_many_rows_are_mixed_in_one_product_and_zero_bases_stay_exact(layer: tuple[int, ...]) -> None:
    x, weight, bases, coefficients, bias = conv_case(layer, 40)
    rows, options = coefficients[:, :3], options_of(layer)
    kernels = synthesize(weight, bases, Decision(rows, -1), 0, 0.0)
    assert kernels.parts(rows)[0] is None
    expected = by_hand(x, weight, bases, rows, lambda x, w: F.conv2d(x, w, bias, *options))
    torch.testing.assert_close(basis_conv2d(x, kernels, bias, *options), expected, rtol=1e-10, atol=1e-10)
    _, stack, mixed = synthesize(weight, 0 * bases, Decision(rows, -1), 0, 0.0).parts(rows)
    assert all(torch.equal(kernel, weight.flatten()) for kernel in mixed @ stack.flatten(1))


def test_many_rows_of_large_kernels_are_cut_along_both_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bases, coefficients, bias = conv_case(LAYERS[0], 19)
    monkeypatch.setattr(synthesis, "CPU_KERNELS", weight.numel())
    kernels = synthesize(weight, bases, Decision(coefficients, -1), 1, 0.0)
    options = options_of(LAYERS[0])
    expected = by_hand(x, weight, bases, coefficients[:, 1:4], lambda x, w: F.conv2d(x, w, bias, *options))
    torch.testing.assert_close(basis_conv2d(x, kernels, bias, *options), expected, rtol=1e-10, atol=1e-10)
