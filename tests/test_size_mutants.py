"""Seeded bugs in what makes a network of several sizes: each is noticed by the test that is named for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dyncompile import pipeline, variants
from dyncompile.passes.resolution import predictors, sizes
from dyncompile.program import Program
from dyncompile.runtime import compiled, ops
from dyncompile.runtime import sizes as run
from tests import test_resolution as checks

pytestmark = pytest.mark.zoo


@dataclass(frozen=True)
class Bug:
    """`owner.name` is `wrong`, and `noticed` fails."""

    what: str
    owner: Any
    name: str
    wrong: Any
    noticed: Callable[[], Any]


def _aliased(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear")


def _all_resized(self: run.BySize, column: int, flat: Sequence[Any]) -> list[Any]:
    out, at = list(flat), self._variants.image  # pyright: ignore[reportPrivateUsage]
    out[at] = out[at] if column == 0 else ops.resized(out[at], self._variants.sizes[0])  # pyright: ignore
    return out


def _unordered(outputs: Sequence[Any], rows: Tensor, types: Any) -> Any:
    return _merge(outputs, torch.arange(len(rows)), types)


def _first_rows(self: Any, policy: Any, planned: Any, index: Tensor) -> Any:
    return _policy(self, policy, planned, torch.arange(len(index)))


def _evaluated(self: Any, mode: Any, *rest: Any) -> Any:
    return _run(self, "eval", *rest)


def _one_size(self: Any, mode: Any, flat: Any, decision: Tensor, *rest: Any) -> Any:
    return _dense(self, mode, flat, F.one_hot(decision.argmax(1), decision.shape[1]).to(decision), *rest)


def _first_copied(original: Any) -> Any:
    """Weights are copied like norms."""

    def own(other: Program, shared: Any) -> Any:
        found = original(other, shared)
        return {**found, "stem.weight": (nn.Parameter(shared["stem.weight"].detach().clone()), True)}

    return own


def _native_alone(program: Program, edit: Any) -> Program:
    found = program.variants
    assert found is not None
    native = edit(variants.at(program, found.native))
    others = {column: variants.at(program, column) for column in found.others}
    native = replace(native, choices={**program.choices, **native.choices}, source=program.source)
    return variants._joined(native, found, others)  # pyright: ignore[reportPrivateUsage]


def _sure_of_the_smallest(self: Any, *args: Any) -> None:
    _predictor(self, *args)
    with torch.no_grad():
        self.head.bias.copy_(self.head.bias.flip(0))


def _at_native(self: predictors.Predictor, x: Tensor) -> Tensor:
    return self.head(self.body(x))


def _cut(size: tuple[int, int], factor: float) -> tuple[int, int]:
    return int(size[0] * factor), int(size[1] * factor)


def _backwards(self: Any, taken: Any) -> Any:
    choice = _choice(self, taken)
    return replace(choice, full=choice.smallest, smallest=choice.full)


_merge, _policy, _run = run.merge_outputs, run.BySize._policy, run.BySize.run  # pyright: ignore
_dense, _predictor = run.BySize._mixed, predictors.Predictor.__init__  # pyright: ignore[reportPrivateUsage]
_choice, _own = sizes.Resolution._choice, variants._own_state  # pyright: ignore[reportPrivateUsage]
_SIZED = next(spec for spec in checks.PAIRS if "dsnet" in spec[0])

BUGS = (
    Bug("images are resized with aliasing", ops, "resized", _aliased, lambda: _every_size(0)),
    Bug("another size is resized to", run.BySize, "resized", _all_resized, lambda: _every_size(1)),
    Bug("the native image is resized", run.BySize, "resized", _all_resized, lambda: _every_size(2)),
    Bug("rows come back by size", run, "merge_outputs", _unordered, lambda: _mixed_order()),
    Bug(
        "routes come back by size",
        run,
        "_together",
        lambda parts, order: {n: torch.cat([p[n] for p in parts]) for n in parts[0]},
        lambda: checks.test_every_row_keeps_its_size_and_its_other_decisions(),
    ),
    Bug(
        "rows get the decisions of others",
        run.BySize,
        "_policy",
        _first_rows,
        lambda: checks.test_every_row_keeps_its_size_and_its_other_decisions(),
    ),
    Bug("training runs evaluation", run.BySize, "run", _evaluated, lambda: _mixed_order()),
    Bug(
        "soft decisions are rounded",
        run.BySize,
        "_mixed",
        _one_size,
        lambda: checks.test_soft_decisions_mix_all_sizes(),
    ),
    Bug(
        "outputs do not carry the decision",
        run.BySize,
        "_gained",
        lambda self, mode, outputs, gains: list(outputs),
        lambda: checks.test_the_loss_reaches_the_predictor_through_what_it_chose("sparse"),
    ),
    Bug(
        "outputs are multiplied by the wrong decision",
        run.BySize,
        "_gained",
        lambda self, mode, outputs, gains: [2 * value for value in outputs],
        lambda: checks.test_the_decision_is_exactly_one_in_value(),
    ),
    Bug(
        "the predictor is free",
        run.BySize,
        "decision_macs",
        0.0,
        lambda: checks.test_macs_are_those_of_the_source_at_each_size(),
    ),
    Bug(
        "learned routes do not pay for the predictor",
        run.BySize,
        "spent",
        lambda self, route: run.by_column(self.choice, [model.spent for model in self.models], route),
        lambda: checks.test_learned_routes_pay_for_the_predictor(),
    ),
    Bug(
        "one position learns its variance",
        compiled,
        "_learning_batch_norm",
        torch.ops.aten.batch_norm.default,
        lambda: _lone(),
    ),
    Bug(
        "norms are shared",
        variants,
        "norm_state",
        lambda graph: set(),
        lambda: checks.test_norms_alone_are_private_shortcuts_included(),
    ),
    Bug(
        "norms are the same tensors",
        variants,
        "_copied",
        lambda value: value,
        lambda: checks.test_norms_alone_are_private_shortcuts_included(),
    ),
    Bug(
        "weights are private",
        variants,
        "_own_state",
        _first_copied(_own),
        lambda: checks.test_norms_alone_are_private_shortcuts_included(),
    ),
    Bug(
        "passes act on the native size alone",
        pipeline,
        "edited",
        _native_alone,
        lambda: checks.test_other_passes_apply_to_all_sizes(_SIZED),
    ),
    Bug(
        "untrained predictors take the smallest size",
        predictors.Predictor,
        "__init__",
        _sure_of_the_smallest,
        lambda: checks.test_evaluation_draws_nothing_and_untrained_predictors_keep_the_native_size(),
    ),
    Bug(
        "the predictor sees the native image",
        predictors.Predictor,
        "forward",
        _at_native,
        lambda: checks.test_the_predictor_sees_a_small_copy_without_aliasing(),
    ),
    Bug(
        "sides are cut, not rounded",
        sizes,
        "_scaled",
        _cut,
        lambda: checks.test_shares_are_rounded_as_stated(),
    ),
    Bug(
        "the smallest size is taken for full",
        sizes.Resolution,
        "_choice",
        _backwards,
        lambda: checks.test_evaluation_draws_nothing_and_untrained_predictors_keep_the_native_size(),
    ),
    Bug(
        "costs of predictors are not compared",
        sizes,
        "macs_of",
        lambda net, channels: 0.0,
        lambda: checks.test_the_predictor_sees_the_native_image_once(),
    ),
)


def _every_size(column: int) -> None:
    checks.test_every_size_is_the_source_on_the_resized_image(column)


def _mixed_order() -> None:
    inner: Any = checks.test_mixed_sizes_come_back_in_input_order
    for training in (False, True):
        inner.hypothesis.inner_test([2, 0, 1, 0], training)


def _lone() -> None:
    checks.test_a_size_of_one_row_and_one_position_keeps_its_statistics(0)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.what.replace(" ", "_"))
def test_seeded_bugs_are_noticed(bug: Bug) -> None:
    """The tests themselves are the control: they pass where nothing is wrong."""
    checks.made.cache_clear()
    try:
        with ExitStack() as stack:
            stack.enter_context(patch.object(bug.owner, bug.name, bug.wrong))
            with pytest.raises((Exception, pytest.fail.Exception)):
                bug.noticed()
    finally:
        checks.made.cache_clear()
