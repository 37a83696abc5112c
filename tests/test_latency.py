"""The measured cost model, on a device whose clock counts MACs: there time and MACs must be the same."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import dyncompile as dc
from dyncompile.deploy import deployed
from dyncompile.errors import InputError
from dyncompile.latency import terms as terms_module
from dyncompile.latency.axes import Columns, Shares, hats
from dyncompile.latency.design import routes_to_time
from dyncompile.latency.inputs import random_inputs
from dyncompile.latency.model import Fit, _key, ends
from dyncompile.latency.store import Key, cache_folder
from dyncompile.latency.terms import Term, combinations
from dyncompile.latency.timing import Asked
from dyncompile.program import Choice, Domain, Sized
from tests.latency_support import CHANNELS, MANY, METHODS, NANO, WorkClock, made, some_routes, timed


@pytest.mark.parametrize("name", METHODS)
def test_time_is_macs_where_time_is_macs(name: str, tmp_path: Path) -> None:
    dyn = made(METHODS[name])
    latency = timed(dyn, tmp_path)
    assert latency.source == pytest.approx(NANO * dyn.static_macs, rel=1e-9)
    for route in some_routes(dyn, 6):
        torch.testing.assert_close(latency(route), NANO * dyn.macs(route), rtol=1e-9, atol=0)
    for route in some_routes(dyn, 2):  # what a learned call really runs, decision nets included
        row = {choice: rows[:1] for choice, rows in route.items()}
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            dyn.run(torch.randn(2, 3, 8, 8), policy=Asked(row))
        assert float(latency.spent(row)) == pytest.approx(NANO * counter.get_total_flops() / 4)


@pytest.mark.parametrize("name", ["blocks", "layers", "sizes"])
def test_gradients_are_those_of_macs(name: str, tmp_path: Path) -> None:
    dyn = made(METHODS[name])
    latency = timed(dyn, tmp_path)
    soft = {
        name: torch.rand(3, choice.width).softmax(1) if choice.domain is Domain.ONE_HOT else torch.rand(3, 1)
        for name, choice in dyn.choices.items()
    }
    found, expected = ({k: v.clone().requires_grad_() for k, v in soft.items()} for _ in range(2))
    latency(found).sum().backward()
    (NANO * dyn.macs(expected)).sum().backward()
    for choice in dyn.choices:
        torch.testing.assert_close(found[choice].grad, expected[choice].grad, rtol=1e-5, atol=0)


def test_channels_are_interpolated_between_shares(tmp_path: Path) -> None:
    dyn = made(CHANNELS)
    latency = timed(dyn, tmp_path)
    for share, near in ((0.25, 1e-9), (0.5, 1e-9), (0.75, 1e-9), (0.375, 0.05), (0.625, 0.05)):
        route = {
            name: (torch.arange(choice.width) < round(share * choice.width)).float()[None]
            for name, choice in dyn.choices.items()
        }
        assert float(latency(route)) == pytest.approx(NANO * float(dyn.macs(route)), rel=near)


def test_of_many_columns_some_are_timed(tmp_path: Path) -> None:
    dyn = made(MANY)
    latency = timed(dyn, tmp_path)
    (choice,) = dyn.choices.values()
    assert choice.width == 7
    times = [float(latency(dyn.route(column))) for column in range(7)]
    macs = [NANO * float(dyn.macs(dyn.route(column))) for column in range(7)]
    exact = [a == pytest.approx(b, rel=1e-9) for a, b in zip(times, macs, strict=True)]
    assert sum(exact) == 4
    assert exact[0]
    assert exact[6]
    assert times == pytest.approx(macs, rel=0.08)
    assert times == sorted(times)


def test_too_many_combinations_are_timed_choice_by_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terms_module, "_MOST", 4)
    dyn = made(METHODS["blocks"])
    latency = timed(dyn, tmp_path)
    assert any(len(one.axes) > 1 for one in latency.networks[0].terms)
    for name, choice in dyn.choices.items():
        for column in range(choice.width):
            route = dyn.route({name: column})
            assert float(latency(route)) == pytest.approx(NANO * float(dyn.macs(route)), rel=1e-9)
    least = float(latency(dyn.route(0)))
    assert 0 < least < latency.source


def test_whole_calls_are_more_than_their_operators() -> None:
    assert Fit.of((5.0, 2.0), (4.0, 1.0)) == Fit(1.0, 1.0)
    bent = Fit.of((5.0, 1.7), (4.0, 1.0))
    assert (bent.scale, bent.offset) == pytest.approx((1.1, 0.6))
    assert Fit.of((3.0, 1.0), (4.0, 1.0)) == Fit(0.75, 0.0)
    assert Fit.of((5.0, 9.0), (4.0, 3.9)) == Fit(1.0, 1.0)
    assert Fit.of((9.0, 1.0), (4.0, 1.0)) == Fit(1.25, 4.0)


def test_whole_calls_are_met_at_both_ends(tmp_path: Path) -> None:
    """Each operator's call takes some time, too; a call that skips has some that no graph shows."""
    dyn = made(METHODS["layers"])
    latency, x = timed(dyn, tmp_path, WorkClock(per_call=100), batch=1), torch.randn(1, 3, 8, 8)
    for policy in (dc.Full(), dc.Smallest()):
        route = ends(dyn.choices, policy)
        with WorkClock(per_call=100) as clock, torch.inference_mode():
            dyn.run(x, policy=dc.Forced(route))
        assert float(latency(route)) == pytest.approx(NANO * clock.done, rel=1e-3)
        assert clock.done > 1.02 * float(dyn.macs(route))


def test_the_model_stays_as_it_is(tmp_path: Path) -> None:
    dyn = made(METHODS["widths"])
    before = {name: value.clone() for name, value in dyn.state_dict().items()}
    dyn.train()
    timed(dyn, tmp_path)
    assert dyn.training
    dyn.eval()
    assert all(torch.equal(value, before[name]) for name, value in dyn.state_dict().items())


def test_what_cannot_be_timed_is_refused(tmp_path: Path) -> None:
    dyn = made(METHODS["blocks"])
    with pytest.raises(dc.SpecError, match="at least 1"):
        timed(dyn, tmp_path, batch=0)
    with pytest.raises(dc.InputError):
        timed(dyn, tmp_path, inputs=torch.randn(2, 3, 9, 8))
    with pytest.raises(dc.RouteError, match="lacks the choices"):
        timed(dyn, tmp_path)({})


# -- axes and design --------------------------------------------------------------------------------


def test_hats_are_linear_between_anchors() -> None:
    anchors = torch.tensor([0.25, 0.5, 1.0]).double()
    at = torch.tensor([0.1, 0.25, 0.375, 0.5, 0.9, 1.0]).double()
    weights = hats(at, anchors)
    torch.testing.assert_close(weights.sum(1), torch.ones(6).double())
    torch.testing.assert_close(weights @ anchors, at.clamp(min=0.25))
    assert int((weights > 0).sum(1).max()) == 2


def test_every_combination_is_covered_by_few_routes() -> None:
    choice = Choice("", Domain.ONE_HOT, (0.0, 0.0, 0.0, 1.0), (1.0, 0.0, 0.0, 0.0))
    names = [f"c{i}" for i in range(8)]
    axes: dict[str, Any] = {name: Columns.of(choice, [Sized(name, (2, 4, 6, 8))]) for name in names[:7]} | {
        names[7]: Shares.of(Choice("", Domain.GAINS, (1.0,) * 6, (0.0,) * 6))
    }
    terms = [Term(pair, (), (), True, True, ()) for pair in itertools.pairwise(names)]
    routes = routes_to_time(terms, axes)
    assert routes[0] == {name: axes[name].full for name in names}
    assert len(routes) <= 24
    for term in terms:
        met = {tuple(route[name] for name in term.axes) for route in routes}
        assert met == set(combinations(term, axes))


# -- what is kept on disk ---------------------------------------------------------------------------


def test_times_are_kept(tmp_path: Path) -> None:
    dyn, clock = made(METHODS["widths"]), WorkClock()
    first = timed(dyn, tmp_path, clock)
    measured = clock.marks
    assert measured > 0
    again = timed(dyn, tmp_path, clock)
    assert clock.marks == measured
    assert torch.equal(again(dyn.route(1)), first(dyn.route(1)))
    timed(dyn, tmp_path, clock, fresh=True)
    assert clock.marks == 2 * measured
    timed(dyn, tmp_path, clock, batch=3)
    assert clock.marks > 2 * measured
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:40],
        lambda text: "[]",
        lambda text: text.replace('"threads"', '"heads"'),
        lambda text: json.dumps({**json.loads(text), "networks": [{"terms": [[1.0]], "calls": {}}]}),
        lambda text: text.replace('"source": ', '"source": -'),
        lambda text: json.dumps({**json.loads(text), "networks": []}),
    ],
)
def test_damaged_times_are_measured_again(damage: Any, tmp_path: Path) -> None:
    dyn, clock = made(METHODS["widths"]), WorkClock()
    expected = timed(dyn, tmp_path, clock)(dyn.route(1))
    measured = clock.marks
    (path,) = tmp_path.iterdir()
    whole = path.read_text()
    damaged = damage(whole)
    assert damaged != whole
    path.write_text(damaged)
    assert torch.equal(timed(dyn, tmp_path, clock)(dyn.route(1)), expected)
    assert clock.marks == 2 * measured
    assert path.read_text() == whole


def test_times_that_cannot_be_kept_are_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="cannot be kept"):
        latency = timed(made(METHODS["widths"]), tmp_path / "file")
    assert latency.source > 0


def test_the_folder_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DYNCOMPILE_CACHE", raising=False)
    assert "dyncompile" in str(cache_folder())
    monkeypatch.setenv("DYNCOMPILE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "latency"


def test_deployments_are_measured_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what parts rows, which a single way never does, makes no other measurement."""
    monkeypatch.setattr(deployed, "check_usable", lambda: None)
    dyn = made(METHODS["widths"])
    here, clock = torch.device("cpu"), WorkClock()

    def key(**settings: Any) -> Key:
        return _key(dc.deploy(dyn, **settings), [], here, clock)

    assert key() == key(max_buckets=2)
    others = [_key(dyn, [], here, clock), key(backend="inductor"), key(memory="packed"), key(max_graphs=2)]
    assert len({one.name for one in (key(), *others)}) == 5


def test_without_a_sample_there_is_nothing_to_time(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one"):
        dc.Latency(made(METHODS["widths"]), inputs=torch.randn(0, 3, 8, 8), cache=tmp_path)


def test_random_inputs_have_the_dtype_that_the_model_has_now() -> None:
    dyn = copy.deepcopy(made(METHODS["widths"])).double()
    (x,) = random_inputs(dyn.program, 3, torch.device("cpu"))
    assert (x.shape[0], x.dtype) == (3, torch.float64)


def test_what_is_measured_in_inference_mode_has_gradients(tmp_path: Path) -> None:
    dyn = made(METHODS["widths"])
    with torch.inference_mode():
        latency = timed(dyn, tmp_path)
    (choice,) = dyn.choices.values()
    row = torch.full((1, choice.width), 1 / choice.width, requires_grad=True)
    latency({choice.name: row}).sum().backward()
    assert row.grad is not None
    assert row.grad.any()
