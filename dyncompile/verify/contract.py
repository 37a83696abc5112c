"""The contract of a dynamic model, checked on the user's own model and inputs.

`verify` runs every check and raises `ContractError` with all that fail. The reference is a copy of the source
with the dynamic model's present weights, so that a trained model can be verified too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dyncompile.deploy.deployed import Deployed
from dyncompile.errors import ContractError, DyncompileError
from dyncompile.pipeline import call_of
from dyncompile.policies import Sampled
from dyncompile.runtime.model import DynamicModel
from dyncompile.runtime.steering import plan_route
from dyncompile.verify.decisions import check_gradients, check_learned
from dyncompile.verify.full import check_full_eval, check_full_train, check_names
from dyncompile.verify.report import Check, Report
from dyncompile.verify.routes import check_cost, check_masked, check_sparse, check_specialize
from dyncompile.verify.structure import check_purity, check_replay, check_types
from dyncompile.verify.subject import Subject


def verify(
    dyn: DynamicModel, model: nn.Module, example_inputs: Any = None, *, routes: int = 2, seed: int = 0
) -> Report:
    """Check the contract of `dyn` against the model that it was made from.

    Args:
        dyn: the dynamic model; neither it nor `model` is changed.
        model: its source.
        example_inputs: as for `dynamize`; of the captured shape.
        routes: how many random routes to specialize and compare.
        seed: seeds the routes and both sides' dropout.

    Returns:
        The report, one line per invariant when printed.

    Raises:
        ContractError: at least one invariant is broken; all are listed.
        DyncompileError: `dyn` is a deployed model.
    """
    if isinstance(dyn, Deployed):
        raise DyncompileError(
            "a deployed model is not checked: it has no training graph, and its weights are not its source's",
            where=type(dyn).__name__,
            fix="verify the dynamic model that was deployed",
        )
    args, kwargs = call_of(model, example_inputs)
    own = copy.deepcopy(dyn)
    reference = copy.deepcopy(model)
    known = reference.state_dict().keys()
    reference.load_state_dict({k: v for k, v in own.state_dict().items() if k in known}, strict=False)
    sampled = tuple(plan_route(Sampled(seed + i), own.choices, 1) for i in range(routes))
    subject = Subject(own, reference, args, kwargs, sampled)
    with _exact_attention():
        report = Report(tuple(check(subject, seed) for check in CHECKS))
    if not report.passed:
        broken = [
            f"{c.name}: {c.detail} (max abs diff {c.difference:.3g})" for c in report.checks if not c.passed
        ]
        error = ContractError.of_all("the dynamic model breaks its contract", broken)
        error.report = report
        raise error
    return report


@contextmanager
def _exact_attention() -> Generator[None]:
    """`nn.MultiheadAttention` takes a fused path in evaluation that no graph has (3e-5 apart).

    Switch it off.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


CHECKS: Sequence[Callable[[Subject, int], Check]] = (
    check_full_eval,
    check_full_train,
    check_names,
    check_specialize,
    check_cost,
    check_gradients,
    check_replay,
    check_sparse,
    check_masked,
    check_learned,
    check_purity,
    check_types,
)
