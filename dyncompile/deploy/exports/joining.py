"""Branches at batch 1: each runs where its gain is not 0.

total = kept;  for every branch:  if gain_k != 0: total + alpha * gain_k * body_k, else: total
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import fx

from dyncompile.analysis.skips import Alternative, Skip
from dyncompile.deploy.exports import forms
from dyncompile.deploy.exports.frames import Frame
from dyncompile.program import Decision

if TYPE_CHECKING:
    from dyncompile.deploy.exports.values import Values


def write_join(values: Values, frame: Frame, skip: Skip) -> Any:
    """What is kept plus the branches; see `dyncompile.analysis.skips`."""
    decision = values.decision(frame, cast(fx.Node, skip.product.args[1]))
    kept = None if skip.kept is None else values.read(frame, skip.kept)
    gains = [values.weighed(frame, decision, one.condition[1]) for one in skip.alternatives]
    if isinstance(decision, Decision):
        return _rectified(frame, skip, _known(values, frame, skip, kept, gains))
    _before(values, frame, skip)
    if kept is not None and len(gains) == 1:
        return _one(values, frame, skip, kept, gains[0])
    total = kept
    for one, gain in zip(skip.alternatives, gains, strict=True):
        total = _more(values, frame, skip, total, one, gain)
    return _rectified(frame, skip, total)


def _before(values: Values, frame: Frame, skip: Skip) -> None:
    """Compute what bodies read and others may read, too, before the conditions."""
    body = set(skip.body)
    for node in skip.body:
        for operand in node.all_input_nodes:
            if operand not in body:
                values.value(frame, operand)


def _known(values: Values, frame: Frame, skip: Skip, kept: Any, gains: Sequence[Any]) -> Any:
    """The sum where gains are known ahead of time."""
    total = kept
    for one, gain in zip(skip.alternatives, gains, strict=True):
        if gain:
            part = values.times(frame, _output(values, frame, one), gain)
            total = part if total is None else _sum(frame, skip, total, part)
    return _zeros(values, frame, skip) if total is None else total


def _one(values: Values, frame: Frame, skip: Skip, kept: fx.Node, gain: Any) -> fx.Node:
    """A sum with one branch: the rectifier behind it belongs to the condition."""
    (one,) = skip.alternatives

    def run(side: Frame) -> list[fx.Node]:
        part = values.times(side, _output(values, side, one), side.find((_GAIN, skip.product.name)))
        return [_rectified(side, skip, _sum(side, skip, side.find((_TOTAL, skip.product.name)), part))]

    def skipped(side: Frame) -> list[fx.Node]:
        return [
            side.find((_TOTAL, skip.product.name))
            if skip.positive
            else _rectified(side, skip, side.find((_TOTAL, skip.product.name)))
        ]

    return _where(frame, skip, gain, kept, run, skipped)


def _more(
    values: Values, frame: Frame, skip: Skip, total: fx.Node | None, one: Alternative, gain: Any
) -> fx.Node:
    """The sum so far, with one more branch where it has a gain."""

    def run(side: Frame) -> list[fx.Node]:
        part = values.times(side, _output(values, side, one), side.find((_GAIN, skip.product.name)))
        return [part if total is None else _sum(side, skip, side.find((_TOTAL, skip.product.name)), part)]

    def skipped(side: Frame) -> list[fx.Node]:
        return [_zeros(values, side, skip) if total is None else side.find((_TOTAL, skip.product.name))]

    return _where(frame, skip, gain, total, run, skipped)


_GAIN, _TOTAL = "gain of", "sum before"
"""What sides find under these names and that of the product: sums lie inside one another."""


def _where(
    frame: Frame,
    skip: Skip,
    gain: fx.Node,
    total: fx.Node | None,
    run: Callable[[Frame], list[fx.Node]],
    skipped: Callable[[Frame], list[fx.Node]],
) -> fx.Node:
    """A condition on a gain, which its sides find, and the sum so far, by name."""
    frame.values[_GAIN, skip.product.name] = gain
    if total is not None:
        frame.values[_TOTAL, skip.product.name] = total
    is_on = frame.call(forms.is_on, gain)
    sides = [(frame.inside(), run), (frame.inside(), skipped)]
    (result,) = frame.cond(is_on, sides, _no_decision)
    return result


def _no_decision(frame: Frame, name: str) -> fx.Node:
    raise AssertionError(f"{name} is decided in a branch")


def _output(values: Values, frame: Frame, one: Alternative) -> fx.Node:
    return values.read(frame, one.output)


def _sum(frame: Frame, skip: Skip, total: fx.Node, part: fx.Node) -> fx.Node:
    return frame.call(forms.added, total, part, skip.alpha)


def _rectified(frame: Frame, skip: Skip, total: Any) -> fx.Node:
    return frame.call(torch.relu, total) if skip.last is not skip.exit else total


def _zeros(values: Values, frame: Frame, skip: Skip) -> fx.Node:
    """What a product is where no branch has a gain."""
    return values.sizes.zeros(frame, skip.product)
