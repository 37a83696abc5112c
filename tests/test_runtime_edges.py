"""What users do around a run: names of their own, modes of torch, routes of other types, relaxed rows."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import dyncompile as dc
from tests.train_support import CLASSES, GATED, conv_net, conv_source, plain, recipe, run

X = torch.randn(6, 3, 6, 6)
METHODS = (GATED, "lcnet(layers=False)", "resolution(sizes=(4, 6))")


class _Actor(nn.Module):
    """Submodules that are called as a dynamic model's own attributes are."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = conv_source()
        self.costs, self.by_size, self.facts = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, tensors: Tensor) -> Tensor:
        return self.facts(self.by_size(self.costs(self.policy(tensors))))


@pytest.mark.parametrize("method", METHODS)
def test_names_of_the_source_are_its_own(method: str) -> None:
    source = _Actor().eval()
    dyn = dc.dynamize(source, method, X).eval()
    again = copy.deepcopy(dyn)
    again.policy = dc.Full()
    fast = dc.deploy(dyn)
    with torch.no_grad():
        assert torch.equal(again(X), source(X))
        assert torch.equal(dyn.run(tensors=X, policy=dc.Full())[0], source(X))
        torch.testing.assert_close(fast.run(X, policy=dc.Full())[0], source(X))
        assert fast(X).shape == (6, CLASSES)
    assert [*dyn.state_dict()][: len(source.state_dict())] == [*source.state_dict()]


@pytest.mark.parametrize("method", METHODS)
def test_arguments_of_the_source_are_its_own(method: str, tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = conv_source()

        def forward(self, policy: Tensor, tensors: Tensor) -> Tensor:
            return self.inner(policy) * tensors

    source, scale = Named().eval(), torch.rand(6, 1)
    dyn = dc.dynamize(source, method, {"policy": X, "tensors": scale}).eval()
    dc.verify(dyn, source, (X, scale))
    loaded = dc.load(dc.save(dyn, tmp_path))
    with torch.no_grad():
        assert torch.equal(dyn.run(X, scale, policy=dc.Full())[0], source(policy=X, tensors=scale))
        assert torch.equal(loaded.run(X, scale, policy=dc.Full())[0], source(X, scale))
        assert torch.equal(dyn.eval()(policy=X, tensors=scale), dyn(X, scale))


@pytest.mark.parametrize("method", METHODS)
def test_costs_that_are_first_asked_for_in_inference_mode_train_afterwards(method: str) -> None:
    dyn = conv_net(method)
    with torch.inference_mode():
        route = dyn.run(X, policy=dc.Learned())[1]
        for count in (dyn.macs, dyn.spent, dyn.active_parameters):
            count(route)
    record = dyn.record(X, policy=dc.Learned(), execution="dense")
    dyn.spent(record.route).sum().backward()
    run(dyn, recipe(plain(policy=dc.Learned())))


@pytest.mark.parametrize("method", [GATED, "lcnet(layers=False, bits=True)", "resolution(sizes=(4, 6))"])
def test_relaxed_decisions_run_alike_with_and_without_gradients(method: str) -> None:
    dyn = conv_net(method).eval()
    soft = dc.Learned(hard=False)
    with_gradients, route = dyn.run(X, policy=soft)
    assert any(bool(((rows > 0) & (rows < 1)).any()) for rows in route.values())
    with torch.no_grad():
        without, other = dyn.run(X, policy=soft)
    assert torch.equal(with_gradients, without)
    assert all(torch.equal(route[name], other[name]) for name in route)
    with pytest.raises(dc.RouteError, match="only dense execution"):
        dyn.record(X, policy=soft, execution="sparse")
    with pytest.raises(dc.RouteError, match="only dense execution"):
        dc.deploy(dyn).run(X, policy=soft)


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan")])
def test_temperatures_are_above_zero(tau: float) -> None:
    with pytest.raises(dc.SpecError, match="temperature"):
        dc.Learned(tau=tau)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float64, torch.bfloat16])
def test_routes_of_other_types(dtype: torch.dtype) -> None:
    dyn = conv_net().eval()
    rows = dyn.run(X, policy=dc.Sampled(0, per_sample=True))[1]
    expected = dyn.run(X, policy=dc.Forced(rows))[0]
    given = dc.Forced({name: one.to(dtype) for name, one in rows.items()})
    for execution in ("sparse", "dense"):
        found = dyn.record(X, policy=given, execution=execution).output
        torch.testing.assert_close(found, expected)


def test_another_default_type() -> None:
    before: Any = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        source = conv_source().eval()
        x = X.double()
        dyn = dc.dynamize(source, "dsnet(divisor=2, minimum=2)", x).eval()
        dc.verify(dyn, source, x)
        dyn.record(x, policy=dc.Learned(), execution="dense").output.sum().backward()
    finally:
        torch.set_default_dtype(before)


def test_routes_and_words_that_do_not_exist() -> None:
    dyn = conv_net()
    with pytest.raises(dc.RouteError, match="none is number 9"):
        dyn.route(9)
    with pytest.raises(dc.RouteError, match=r"no choices: \['other'\]"):
        dyn.macs({**dyn.route(0), "other": torch.ones(1, 1)})
    with pytest.raises(dc.RouteError, match=r"other widths at \['width'\]"):
        dyn.macs({"width": torch.ones(1, 2)})
    with pytest.raises(dc.SpecError, match="desne"):
        dyn.record(X, policy=dc.Full(), execution=cast(Any, "desne"))


@pytest.mark.parametrize("method", [GATED, "exits"])
def test_compiled_before_anything_has_run(method: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing the compiler warns of what it uses itself
        dyn = conv_net(method).eval()
        compiled: Any = torch.compile(dyn, backend="eager")
        with torch.no_grad():
            found = compiled(X)
            assert torch.equal(found, dyn(X))
        assert compiled.train()(X).shape == found.shape
