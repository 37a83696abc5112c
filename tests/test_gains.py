"""Choices of gains and bits: how they are decided, trained, priced and summed up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dyncompile as dc
from dyncompile.policies import Learned, Sampled
from dyncompile.program import Choice, Domain
from dyncompile.runtime.model import Record
from dyncompile.train import Batch, Clock, Moment
from dyncompile.train.beta import beta_cdf
from dyncompile.train.budget import Budget
from dyncompile.train.gains import BatchShaping, RateTargets, RouteConsistency
from dyncompile.train.sparsification import ExpectedLoss, Sparsification
from dyncompile.train.worth import Worth


def switches(name: str, width: int, domain: Domain = Domain.GAINS) -> Choice:
    return Choice(name, domain, (1.0,) * width, (0.0,) * width)


GAINS, BITS = switches("gains", 3), switches("bits", 3, Domain.BITS)


# -- policies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [Learned(), Learned(noise=True), Learned(tau=0.1, hard=False)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_gains_are_their_logits_capped(policy: Learned, dtype: torch.dtype) -> None:
    logits = torch.tensor([[-0.5, 0.0, 0.25], [1.0, 1.75, -3.0]], dtype=dtype)
    rows = policy.decide(GAINS, 2, logits)
    assert rows.dtype is torch.float32
    assert rows.tolist() == [[0.0, 0.0, 0.25], [1.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    ("logit", "down", "up"),
    [(-1.5, 0, -1), (-1.0, 0, -1), (-0.99, 1, -1), (0.5, 1, -1), (1.0, 1, -1), (1.99, 1, -1), (2.0, 1, 0)],
)
def test_the_gradient_of_a_gain_leads_no_further_away(logit: float, down: float, up: float) -> None:
    logits = torch.full((2, 1), logit, requires_grad=True)
    rows = Learned().decide(switches("g", 1), 2, logits)
    rows.backward(torch.tensor([[1.0], [-1.0]]))
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == [down, up]


def test_a_gain_is_never_stuck_and_never_runs_away() -> None:
    logit = torch.ones(1, 1, requires_grad=True)
    optimizer = torch.optim.SGD([logit], 0.05)

    def pull(towards: float, steps: int) -> float:
        for _ in range(steps):
            optimizer.zero_grad()
            (Learned().decide(switches("g", 1), 1, logit) * -towards).sum().backward()  # pyright: ignore
            optimizer.step()
        return float(logit.detach())

    assert pull(-1.0, 400) == pytest.approx(-1, abs=0.051)
    assert pull(1.0, 30) > 0
    assert pull(1.0, 400) == pytest.approx(2, abs=0.051)
    assert pull(-1.0, 30) < 1


@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_bits_are_hard_with_the_gradient_of_the_sigmoid(tau: float) -> None:
    logits = torch.tensor([[-0.7, 0.0, 1e-6], [3.0, -2.0, 0.4]], requires_grad=True)
    rows = Learned(tau).decide(BITS, 2, logits)
    assert rows.tolist() == [[0, 0, 1], [1, 0, 1]]
    (actual,) = torch.autograd.grad(rows.sum(), logits)
    soft = (logits.detach() / tau).sigmoid()
    torch.testing.assert_close(actual, soft * (1 - soft) / tau)
    torch.testing.assert_close(Learned(tau, hard=False).decide(BITS, 2, logits.detach()), soft)


def test_noise_of_bits_is_logistic_and_only_there_on_request() -> None:
    logits = torch.full((20_000, 3), 0.7)
    assert Learned().decide(BITS, len(logits), logits).all()
    noisy = Learned(noise=True).decide(BITS, len(logits), logits)
    torch.testing.assert_close(noisy.mean(0), torch.sigmoid(logits[0]), atol=0.015, rtol=0)


def test_sampled_gains_are_off_half_of_the_time_and_else_a_half_to_one() -> None:
    state = torch.get_rng_state()
    rows = Sampled(3, per_sample=True).decide(GAINS, 10_000, None)
    assert torch.equal(torch.get_rng_state(), state)
    on = rows[rows > 0]
    assert len(on) / rows.numel() == pytest.approx(0.5, abs=0.01)
    assert (float(on.min()), float(on.max())) == pytest.approx((0.5, 1.0), abs=1e-3)
    assert float(on.mean()) == pytest.approx(0.75, abs=0.005)
    GAINS.check(rows)


@pytest.mark.parametrize("choice", [GAINS, BITS])
def test_a_draw_depends_on_seed_and_name_alone(choice: Choice) -> None:
    wide = replace(choice, full=(1.0,) * 40, smallest=(0.0,) * 40)
    one = Sampled(3).decide(wide, 4, None)
    assert torch.equal(one, one[:1].expand(4, -1))
    assert torch.equal(one, Sampled(3).decide(wide, 4, None))
    assert not torch.equal(one, Sampled(4).decide(wide, 4, None))
    assert not torch.equal(one, Sampled(3).decide(replace(wide, name="other"), 4, None))
    assert len({tuple(row) for row in Sampled(3, per_sample=True).decide(wide, 8, None).tolist()}) == 8


# -- the beta distribution --------------------------------------------------------------------------

X = torch.tensor([0.0, 1e-9, 0.01, 0.2, 0.4999, 0.5, 0.5001, 0.7, 0.99, 1 - 1e-9, 1.0], dtype=torch.float64)


def binomial(a: int, b: int) -> Tensor:
    """F(x): the chance of at least `a` heads in a + b - 1 throws of a coin that shows them with chance x."""
    n = a + b - 1
    return torch.stack([float(math.comb(n, j)) * X**j * (1 - X) ** (n - j) for j in range(a, n + 1)]).sum(0)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (1, 1, X),
        (2, 1, X**2),
        (1, 2.5, 1 - (1 - X) ** 2.5),
        (0.5, 0.5, 2 / math.pi * X.sqrt().asin()),
        (0.3, 1, X**0.3),
        (2, 2, 3 * X**2 - 2 * X**3),
        (7, 3, binomial(7, 3)),
        (50, 40, binomial(50, 40)),
    ],
)
def test_the_beta_distribution_has_its_closed_forms(a: float, b: float, expected: Tensor) -> None:
    torch.testing.assert_close(beta_cdf(X, a, b), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.4), (0.05, 3.3), (11.5, 0.7)])
def test_the_beta_distribution_obeys_its_recurrence(a: float, b: float) -> None:
    beta = math.exp(math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b))
    expected = beta_cdf(X, a, b) - X**a * (1 - X) ** b / (a * beta)
    torch.testing.assert_close(beta_cdf(X, a + 1, b), expected, rtol=0, atol=1e-12)


def test_the_gradient_is_the_density_and_finite_at_the_ends() -> None:
    x = torch.linspace(0.03, 0.97, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: beta_cdf(x, 0.6, 0.4), x)  # pyright: ignore
    ends = torch.tensor([0.0, 1.0], requires_grad=True)
    beta_cdf(ends, 0.6, 0.4).sum().backward()
    assert ends.grad is not None
    assert ends.grad.tolist() == [100.0, 100.0]


# -- objectives -------------------------------------------------------------------------------------


class Gated:
    """A model with the given choices, each with a decision net; every column costs the same."""

    decision_macs = 10.0

    def __init__(self, *choices: Choice) -> None:
        self.choices: Mapping[str, Choice] = {c.name: c for c in choices}
        self.gated = tuple(self.choices)
        self.static_macs = 100.0 * sum(c.width for c in choices)

    def macs(self, route: Mapping[str, Tensor]) -> Tensor:
        rows = torch.cat([route[name] for name in self.choices], 1)
        on = (rows > 0).double() + (rows - rows.detach()).double()
        return 100 * on.sum(1)

    def spent(self, route: Mapping[str, Tensor]) -> Tensor:
        return self.macs(route) + self.decision_macs


def moment(dyn: Gated, logits: Mapping[str, Tensor], **changed: Any) -> Moment:
    """A turn that decided by `logits`; `changed` replaces fields."""
    rows = {name: Learned().decide(dyn.choices[name], len(one), one) for name, one in logits.items()}
    made = Moment(
        dyn=cast(dc.DynamicModel, dyn),
        batch=Batch((), {}, None),
        record=Record(None, rows, logits),
        loss=lambda output, target: torch.tensor(0.5),
        clock=Clock(0, 1000, 0),
        teacher=lambda policy: Record(None, {}, {}),
        memory={},
    )
    return replace(made, **changed)


LAYERS = Gated(switches("layer.a", 1), switches("layer.b", 1, Domain.BITS), switches("channels.a", 2))
LOGITS = {
    "layer.a": torch.tensor([[0.3], [-0.2], [1.4], [0.0]]),  # on: 1/2
    "layer.b": torch.tensor([[0.3], [-0.2], [1.4], [0.2]]),  # on: 3/4
    "channels.a": torch.tensor([[0.3, 1.0], [0.2, -1.0], [1.4, -1.0], [0.2, -1.0]]),  # on: 1 and 1/4
}


def test_rate_targets_by_hand() -> None:
    by_hand = 2 * ((0.6 - 0.5) ** 2 + (0.6 - 0.75) ** 2 + (0.6 - 0.625) ** 2) / 3
    assert float(RateTargets(0.6)(moment(LAYERS, LOGITS))) == pytest.approx(by_hand)
    by_name = RateTargets({"layer.b": 1.0, "layer": 0.2}, weight=3.0)(moment(LAYERS, LOGITS))
    assert float(by_name) == pytest.approx(3 * ((0.2 - 0.5) ** 2 + (1.0 - 0.75) ** 2) / 2)


def test_rates_reach_gates_that_are_on_and_gates_that_are_off() -> None:
    logits = {name: one.clone().requires_grad_() for name, one in LOGITS.items()}
    RateTargets(0.0)(moment(LAYERS, logits)).backward()
    expected = {name: torch.zeros_like(one) for name, one in LOGITS.items()}
    expected["layer.a"] += 2 * 2 * 0.5 / 3 / 4
    soft = LOGITS["layer.b"].sigmoid()
    expected["layer.b"] += 2 * 2 * 0.75 / 3 / 4 * soft * (1 - soft)
    expected["channels.a"] += 2 * 2 * 0.625 / 3 / 8
    expected["channels.a"][1:, 1] = 0  # at -1 a gain is not led any further
    for name, one in logits.items():
        torch.testing.assert_close(one.grad, expected[name])


def test_a_pattern_that_matches_nothing_is_named() -> None:
    with pytest.raises(dc.SpecError, match=r"(?s)\['blok'\].*layer.a, layer.b, channels.a"):
        RateTargets({"layer": 0.5, "blok": 0.1})(moment(LAYERS, LOGITS))


UNIFORM = torch.tensor([0.95, 0.2, 0.6, 0.5])


def test_batch_shaping_by_hand() -> None:
    """Beta(1, 1) is uniform: sorted openings are compared with 1/5, 2/5, 3/5, 4/5."""
    dyn = Gated(switches("a", 2), switches("b", 1, Domain.BITS))
    gains = torch.stack([torch.logit(UNIFORM) / 4, torch.full((4,), 8.0)], 1)
    logits = {"a": gains, "b": torch.logit(UNIFORM)[:, None]}
    one = sum((p - i / 5) ** 2 for i, p in enumerate(sorted(UNIFORM.tolist()), 1)) / 4
    full = sum((1 - i / 5) ** 2 for i in range(1, 5)) / 4
    found = BatchShaping(1, 1, weight=2.0)(moment(dyn, logits))
    assert float(found) == pytest.approx(2 * (one + full + one), rel=1e-5)


@pytest.mark.parametrize("choice", [switches("a", 2), switches("a", 2, Domain.BITS)])
def test_batch_shaping_makes_a_gate_of_every_kind_tell_samples_apart(choice: Choice) -> None:
    torch.manual_seed(0)
    gate = nn.Linear(4, 2)
    with torch.no_grad():
        gate.weight.mul_(0.01)
        gate.bias.fill_(1.0)
    optimizer = torch.optim.Adam(gate.parameters(), 3e-2)
    for _ in range(300):
        optimizer.zero_grad()
        BatchShaping()(moment(Gated(choice), {"a": gate(torch.randn(64, 4))})).backward()
        optimizer.step()
    rows = Learned().decide(choice, 1000, gate(torch.randn(1000, 4)))
    half = float(beta_cdf(torch.tensor(0.5), 0.6, 0.4))  # share of a Beta(0.6, 0.4) below 1/2
    assert (rows == 0).float().mean(0).tolist() == pytest.approx([half, half], abs=0.1)


def test_consistency_compares_what_two_views_open() -> None:
    theirs = {name: (-one).requires_grad_() for name, one in LOGITS.items()}
    asked: list[Any] = []

    def teach(policy: Any) -> Record:
        asked.append(policy)
        return Record(None, {}, theirs)

    ours = {name: one.clone().requires_grad_() for name, one in LOGITS.items()}
    found = RouteConsistency(weight=2.0)(moment(LAYERS, ours, teacher=teach))
    apart = [((LOGITS[n].clamp(0, 1) - theirs[n].clamp(0, 1)) ** 2).mean() for n in ("layer.a", "channels.a")]
    apart.append(((LOGITS["layer.b"].sigmoid() - theirs["layer.b"].sigmoid()) ** 2).mean())
    torch.testing.assert_close(found, 2 * torch.stack(apart).mean())
    found.backward()
    assert all(one.grad is not None and bool(one.grad.any()) for one in ours.values())
    assert all(one.grad is None for one in theirs.values())
    assert asked == [Learned()]


def test_consistency_takes_the_decisions_that_an_earlier_turn_left() -> None:
    rows = {"g": torch.tensor([[0.25], [0.0]])}
    given = moment(
        Gated(switches("g", 1)),
        {"g": torch.tensor([[0.75], [-5.0]])},
        teacher=lambda p: Record(None, rows, {}),
    )
    assert float(RouteConsistency()(given)) == pytest.approx(0.5**2 / 2)


def test_consistency_compares_what_two_views_weigh() -> None:
    choice = Choice("r", Domain.SIMPLEX, (1.0, 0.0), (0.0, 1.0))
    ours = torch.tensor([[0.0, 1.0]], requires_grad=True)
    taught = lambda p: Record(None, {}, {"r": torch.tensor([[1.0, 1.0]])})  # noqa: E731
    found = RouteConsistency()(moment(Gated(choice), {"r": ours}, teacher=taught))
    apart = 0.5 - 1 / (1 + torch.e)
    assert float(found.detach()) == pytest.approx(apart**2, rel=1e-5)
    found.backward()
    assert ours.grad is not None
    assert bool(ours.grad.all())


def test_a_view_of_another_size_is_an_error() -> None:
    given = moment(
        Gated(switches("g", 1)),
        {"g": torch.ones(3, 1)},
        teacher=lambda p: Record(None, {}, {"g": torch.ones(2, 1)}),
    )
    with pytest.raises(dc.InputError, match=r"\[3, 1\] and \[2, 1\]"):
        RouteConsistency()(given)


TERMS = (RateTargets(0.5), BatchShaping(), RouteConsistency())


@pytest.mark.parametrize("term", TERMS)
def test_terms_of_switches_say_what_is_missing(term: Any) -> None:
    with pytest.raises(dc.SpecError, match=r"does not ask the decision nets of \['layer.a'"):
        term(moment(LAYERS, {}))
    one_hot = Gated(Choice("width", Domain.ONE_HOT, (0.0, 1.0), (1.0, 0.0)))
    with pytest.raises(dc.SpecError, match=r"(?s)switches parts on and off.*width \(one-hot\).*'lcnet'"):
        term(moment(one_hot, {}))


@pytest.mark.parametrize("term", [Sparsification(), ExpectedLoss(), Worth()])
def test_terms_of_columns_refuse_switches(term: Any) -> None:
    with pytest.raises(dc.SpecError, match=r"(?s)picks one of several columns.*layer.a \(gains\)"):
        term(moment(LAYERS, LOGITS))


@pytest.mark.parametrize(
    "make",
    [
        lambda: RateTargets(1.5),
        lambda: RateTargets({"layer": -0.1}),
        lambda: RateTargets({}),
        lambda: RateTargets({"(": 0.5}),
        lambda: RateTargets(0.5, weight=-1.0),
        lambda: BatchShaping(alpha=0.0),
        lambda: BatchShaping(beta=51.0),
        lambda: BatchShaping(weight=-1.0),
        lambda: RouteConsistency(-1.0),
        lambda: Budget(0.5, ramp=1.5),
        lambda: Budget(0.5, ramp=-0.1),
        lambda: Budget(0.5, ramp=0.5, start=0.4),
    ],
)
def test_bad_settings(make: Any) -> None:
    with pytest.raises(dc.SpecError):
        make()


# -- the budget -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({"ramp": 0.5}, {0: 1.1, 250: 0.8, 400: 0.62, 500: 0.5, 999: 0.5}),
        ({"ramp": 1.0, "start": 0.8}, {0: 0.8, 500: 0.65, 900: 0.53}),
        ({"start": 0.8}, {0: 0.5, 500: 0.5}),
    ],
)
def test_the_budget_falls_along_its_ramp(settings: Any, asked: dict[int, float]) -> None:
    """Four columns of 25 %, decision nets of 10 %: all on is 110 %, half of them 60 %, the range 100 %."""
    dyn = Gated(switches("g", 4))
    dyn.decision_macs = 40.0
    logits = {"g": torch.tensor([[1.0, 1.0, -1.0, -1.0]])}
    for step, share in asked.items():
        term = Budget(0.5, rate=0.0, damping=1.0, **settings)
        found = term(moment(dyn, logits, clock=Clock(step, 1000, 0)))
        assert float(found) == pytest.approx((0.6 - share) * (0.6 - 0.1), abs=1e-6)


def trained_share(budget: Budget, domain: Domain, rate: float, steps: int = 1000) -> float:
    """Mean share over the last tenth of training six switches, each of which half of the samples need."""
    torch.manual_seed(0)
    choice = switches("g", 6, domain)
    dyn, gate, memory, shares = Gated(choice), nn.Linear(6, 6), dict[str, float](), list[float]()
    dyn.decision_macs = 0.0
    with torch.no_grad():
        gate.weight.zero_()
        gate.bias.fill_(1.0)
    optimizer = torch.optim.AdamW(gate.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        x = torch.randn(64, 6)
        logits = gate(x)
        rows = Learned(noise=True).decide(choice, 64, logits)
        task = (F.softplus(2 * x) * (1 - rows).square()).mean()
        given = moment(dyn, {"g": logits}, clock=Clock(step, steps, 0), memory=memory)
        given = replace(given, record=Record(None, {"g": rows}, {}), loss=lambda o, t, task=task: task)
        optimizer.zero_grad()
        (task + budget(given)).backward()  # pyright: ignore
        optimizer.step()
        schedule.step()
        shares.append(float(dyn.macs({"g": rows.detach()}).mean()) / dyn.static_macs)
    return sum(shares[-steps // 10 :]) / (steps // 10)


@pytest.mark.parametrize("domain", [Domain.GAINS, Domain.BITS])
@pytest.mark.parametrize(
    ("budget", "rate"), [(Budget(0.5), 1e-2), (Budget(0.3, ramp=0.5), 2e-2), (Budget(0.7, ramp=0.5), 1e-2)]
)
def test_the_budget_is_met_by_switches(budget: Budget, domain: Domain, rate: float) -> None:
    # Against the noise of bits logits have to grow far; they are within 1 % after three times as many steps.
    near = 0.02 if domain is Domain.GAINS else 0.06
    assert trained_share(budget, domain, rate) == pytest.approx(budget.target, rel=near)
