"""The contract of a dynamic model, checked on the user's own model and inputs.

`verify` runs every check and raises `ContractError` with all that fail. The reference is a copy of the source
with the dynamic model's present weights, so that a trained model can be verified too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dyncompile.deploy.deployed import Deployed
from dyncompile.errors import ContractError, DyncompileError
from dyncompile.pipeline import call_of
from dyncompile.policies import Sampled
from dyncompile.runtime.model import DynamicModel, as_dynamic
from dyncompile.runtime.steering import plan_route
from dyncompile.state import state_tensors
from dyncompile.verify.decisions import check_gradients, check_learned
from dyncompile.verify.full import check_full_eval, check_full_train, check_names
from dyncompile.verify.report import Check, Report
from dyncompile.verify.routes import check_cost, check_masked, check_sparse, check_specialize
from dyncompile.verify.structure import check_purity, check_replay, check_types
from dyncompile.verify.subject import Subject, captured_anew


def verify(
    dyn: DynamicModel, model: nn.Module, example_inputs: Any = None, *, routes: int = 2, seed: int = 0
) -> Report:
    """Check the contract of `dyn` against the model that it was made from.

    Args:
        dyn: the dynamic model; neither it nor `model` is changed, nor the state of random generators.
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
    dyn = as_dynamic(dyn)
    if isinstance(dyn, Deployed):
        raise DyncompileError(
            "a deployed model is not checked: it has no training graph, and its weights are not its source's",
            where=type(dyn).__name__,
            fix="verify the dynamic model that was deployed",
        )
    with _own_generators(dyn), torch.inference_mode(False), torch.enable_grad(), _exact_attention():
        subject = _subject(dyn, model, example_inputs, routes, seed)
        report = Report(tuple(check(subject, seed) for check in CHECKS))
    if not report.passed:
        broken = [
            f"{c.name}: {c.detail} (max abs diff {c.difference:.3g})" for c in report.checks if not c.passed
        ]
        error = ContractError.of_all("the dynamic model breaks its contract", broken)
        error.report = report
        raise error
    return report


def _subject(dyn: DynamicModel, model: nn.Module, example_inputs: Any, routes: int, seed: int) -> Subject:
    """Copies of both, with the same weights, and what they are called with."""
    args, kwargs = pytree.tree_map(_ordinary, call_of(model, example_inputs))
    own, reference = copy.deepcopy(dyn), copy.deepcopy(model)
    known = reference.state_dict().keys()
    reference.load_state_dict({k: v for k, v in own.state_dict().items() if k in known}, strict=False)
    sampled = tuple(plan_route(Sampled(seed + i), own.choices, 1) for i in range(routes))
    return Subject(own, reference, args, kwargs, sampled, captured_anew(own, reference, args, kwargs))


def _ordinary(value: object) -> object:
    """A tensor of inference mode as one that a backward may keep."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


@contextmanager
def _own_generators(dyn: DynamicModel) -> Generator[None]:
    """Torch's generators, which checks seed, go on afterwards as if nothing had been."""
    devices = {tensor.device for tensor in state_tensors(dyn).values() if tensor.is_cuda}
    with cast(Any, torch.random).fork_rng(devices=list(devices)):
        yield


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
