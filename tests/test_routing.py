"""Routing against networks whose alternatives are put together by hand; what the pass refuses."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import dyncompile as dc
from dyncompile.passes.routing import Place, register_candidate
from dyncompile.policies import Learned
from dyncompile.program import Choice, Domain, Selection
from dyncompile.report.evaluation import evaluate_policy
from dyncompile.train.phase import Optimization, Recipe
from dyncompile.verify import count_macs
from tests.nets import randomize
from tests.support import Subject, relative, same, snapshot, undecided
from tests.test_contract import third_party

TOLERANCE = 1e-5
NAMES = ("original", "identity", "separable3", "narrow", "lowrank")
BRANCHES = "routing(candidates=('identity', 'separable3', 'narrow', 'lowrank'))"


class Cnn(nn.Module):
    """A residual block that keeps its shape, and one with a projection and a stride."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a = nn.Sequential(
            nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
            nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8),
        )  # fmt: skip
        self.b = nn.Sequential(
            nn.Conv2d(8, 10, 3, 2, 1, bias=False), nn.BatchNorm2d(10), nn.ReLU(),
            nn.Conv2d(10, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12),
        )  # fmt: skip
        self.short = nn.Conv2d(8, 12, 1, 2)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (x + self.a(x)).relu()
        x = (self.short(x) + self.b(x)).relu()
        return self.head(x.mean((2, 3)))


class Vgg(nn.Module):
    """Convolutions with norms and nothing beside them; the last one shrinks the map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.one = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.two = nn.Sequential(
            nn.Conv2d(6, 9, 3, padding=1, bias=False), nn.BatchNorm2d(9), nn.ReLU(True), nn.MaxPool2d(2)
        )
        self.head = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(self.stem(x).relu())).mean((2, 3)))


@cache
def source(build: type[nn.Module]) -> Subject:
    """Shared: nobody may change it."""
    torch.manual_seed(3)
    with torch.no_grad():
        return Subject(randomize(build()).eval(), (torch.randn(6, 3, 8, 8),), {})


@cache
def dynamic(build: type[nn.Module], spec: str = BRANCHES) -> dc.DynamicModel:
    """Shared, in evaluation mode, with random alternatives."""
    dyn = source(build).dynamic(spec)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in dyn.state_dict().items():
            if name.startswith("dyn.branches.") and tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=random) * 0.6 + 0.2)
    return dyn


def state(dyn: dc.DynamicModel, prefix: str) -> dict[str, Tensor]:
    lead = f"dyn.branches.{prefix}."
    return {k.removeprefix(lead): v for k, v in dyn.state_dict().items() if k.startswith(lead)}


def normed(x: Tensor, own: Mapping[str, Tensor], norm: str) -> Tensor:
    names = ("running_mean", "running_var", "weight", "bias")
    mean, variance, weight, bias = (own[f"{norm}.{name}"] for name in names)
    return F.batch_norm(x, mean, variance, weight, bias)


def alternative(dyn: dc.DynamicModel, block: str, name: str, x: Tensor, stride: int) -> Tensor | float:
    """What an alternative of a block of `Cnn` adds, by hand."""
    own = state(dyn, f"{block}.{name}")
    if name == "identity":
        return 0.0
    if name == "original":
        return getattr(source(Cnn).module, block)(x)
    if name == "separable3":
        x = F.conv2d(x, own["depthwise.weight"], None, stride, 1, groups=8)
        return normed(F.conv2d(x, own["pointwise.weight"]), own, "end.0")
    if name == "lowrank":
        x = F.avg_pool2d(x, 2) if stride == 2 else x
        return normed(F.conv2d(F.conv2d(x, own["layers.0.weight"]), own["layers.1.weight"]), own, "end.0")
    x = normed(F.conv2d(x, own[f"{block}.0.weight"], None, stride, 1), own, f"{block}.1").relu()
    return normed(F.conv2d(x, own[f"{block}.3.weight"], None, 1, 1), own, f"{block}.4")


def by_hand(dyn: dc.DynamicModel, x: Tensor, weights: Mapping[str, Mapping[str, float]]) -> Tensor:
    """`Cnn` with the given alternatives, each times its weight."""
    net = source(Cnn).module
    assert isinstance(net, Cnn)
    with torch.no_grad():
        x = net.stem(x).relu()
        for block, stride in (("a", 1), ("b", 2)):
            kept = x if block == "a" else net.short(x)
            parts = [w * alternative(dyn, block, name, x, stride) for name, w in weights[block].items()]
            x = (kept + sum(parts)).relu()
        return net.head(x.mean((2, 3)))


def row(weights: Mapping[str, float]) -> list[float]:
    return [weights.get(name, 0.0) for name in NAMES]


ROUTES: list[dict[str, dict[str, float]]] = [
    *({"a": {name: 1.0}, "b": {name: 1.0}} for name in NAMES),
    {"a": {"original": 0.25, "narrow": 0.75}, "b": {"identity": 0.5, "separable3": 0.5}},
]


def route_of(weights: list[dict[str, dict[str, float]]]) -> dict[str, Tensor]:
    return {f"route.{block}": torch.tensor([row(one[block]) for one in weights]) for block in ("a", "b")}


@pytest.mark.parametrize("execution", ["sparse", "dense"])
def test_rows_of_every_kind_give_what_networks_built_by_hand_give(execution: str) -> None:
    dyn, (x,) = dynamic(Cnn), source(Cnn).args
    expected = torch.cat([by_hand(dyn, x[i : i + 1], one) for i, one in enumerate(ROUTES)])
    policy = dc.Forced(route_of(ROUTES))
    with torch.no_grad():
        actual = dyn.record(x, policy=policy, execution=execution).output  # pyright: ignore
    assert relative(expected, actual) <= TOLERANCE


@pytest.mark.parametrize("weights", ROUTES, ids=str)
def test_a_single_route_is_its_static_network_in_values_macs_and_parameters(
    weights: dict[str, dict[str, float]],
) -> None:
    dyn, (x,) = dynamic(Cnn), source(Cnn).args
    route = route_of([weights])
    static = dc.specialize(dyn, route)
    expected = by_hand(dyn, x, weights)
    with torch.no_grad():
        assert relative(expected, dyn.run(x, policy=dc.Forced(route))[0]) <= TOLERANCE
        assert relative(expected, static(x)) <= TOLERANCE
    own = MACS["rest"] + sum(MACS[f"{block}.{name}"] for block in ("a", "b") for name in weights[block])
    assert float(dyn.macs(route)) == own == count_macs(lambda: static(x[:1]))
    assert float(dyn.active_parameters(route)) == sum(p.numel() for p in static.parameters())


MACS = {
    "rest": 64 * 27 * 8 + 16 * 8 * 12 + 12 * 5,
    **{f"{block}.identity": 0 for block in "ab"},
    "a.original": 64 * 2 * 9 * 48,
    "a.narrow": 64 * 2 * 9 * 24,
    "a.separable3": 64 * (9 * 8 + 64),
    "a.lowrank": 64 * 2 * 16,
    "b.original": 16 * 9 * (80 + 120),
    "b.narrow": 16 * 9 * (40 + 60),
    "b.separable3": 16 * (9 * 8 + 8 * 12),
    "b.lowrank": 16 * (8 * 2 + 2 * 12),
}
"""Counted by hand, per sample."""


def test_dense_and_sparse_agree_on_random_mixtures_of_rows() -> None:
    dyn, (x,) = dynamic(Cnn), source(Cnn).args
    for seed in range(4):
        with torch.no_grad():
            sparse, route = dyn.run(x, policy=dc.Sampled(seed, per_sample=True))
            dense = dyn.record(x, policy=dc.Forced(route), execution="dense").output
        assert relative(sparse, dense) <= TOLERANCE


def test_what_no_row_takes_does_not_run() -> None:
    dyn, (x,) = source(Cnn).dynamic(BRANCHES), source(Cnn).args
    with torch.no_grad():
        for name, parameter in dyn.named_parameters():
            if name.startswith("dyn.branches.") and "lowrank" in name:
                parameter.fill_(float("inf"))
        output, _ = dyn.run(x, policy=dc.Forced(route_of(ROUTES[:4] + ROUTES[:2])))
    assert output.isfinite().all()


@pytest.mark.parametrize(("build", "spec"), [(Cnn, BRANCHES), (Vgg, "routing(connections=steps)")])
def test_untrained_routers_keep_the_source(build: type[nn.Module], spec: str) -> None:
    dyn, one = source(build).dynamic(spec), source(build)
    with torch.no_grad():
        output, route = dyn.run(*one.args, policy=Learned())
        soft = dyn.record(*one.args, policy=Learned(hard=False)).route
    assert same(one.expected(), output)
    for name, choice in dyn.choices.items():
        assert route[name].tolist() == [list(choice.full)] * 6
        assert soft[name][:, 0].tolist() == pytest.approx([0.9] * 6)


def test_parts_of_the_trunk_have_alternatives() -> None:
    dyn, one = dynamic(Vgg, "routing(connections=steps, candidates=('identity', 'lowrank'))"), source(Vgg)
    (x,), net = one.args, one.module
    assert isinstance(net, Vgg)
    assert {name: c.labels for name, c in dyn.choices.items()} == {
        "route.one.0": ("original", "identity", "lowrank")
    }
    own = state(dyn, "one.0.lowrank")
    with torch.no_grad():
        before = net.stem(x).relu()
        other = F.conv2d(F.conv2d(before, own["layers.0.weight"]), own["layers.1.weight"])
        parts = [net.one(before), before, normed(other, own, "end.0").relu()]
        rows = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0], [0, 0.25, 0.75], [1, 0, 0]])
        mixed = sum(rows[:, k, None, None, None] * part for k, part in enumerate(parts))
        expected = net.head(net.two(mixed).mean((2, 3)))
        actual, _ = dyn.run(x, policy=dc.Forced({"route.one.0": rows}))
    assert relative(expected, actual) <= TOLERANCE


def test_chosen_modules_have_alternatives() -> None:
    dyn = dynamic(Vgg, "routing(connections=modules, include='^(one|two)$', candidates=('identity',))")
    assert set(dyn.choices) == {"route.one", "route.two"}
    (x,), net = source(Vgg).args, source(Vgg).module
    assert isinstance(net, Vgg)
    own = state(dyn, "two.identity")
    with torch.no_grad():
        pooled = F.adaptive_avg_pool2d(net.stem(x).relu(), (4, 4))
        mapped = normed(F.conv2d(pooled, own["layers.0.weight"]), own, "end.0").relu()
        rows = torch.tensor([[0.0, 1.0]])
        actual, _ = dyn.run(x, policy=dc.Forced({"route.one": rows, "route.two": rows}))
        assert relative(net.head(mapped.mean((2, 3))), actual) <= TOLERANCE


def test_inputs_stay_as_they_are() -> None:
    dyn, (x,) = dynamic(Vgg, "routing(connections=steps)"), source(Vgg).args
    before, kept = x.clone(), snapshot(dyn)
    with torch.no_grad():
        for policy in (dc.Full(), dc.Smallest(), dc.Sampled(1, per_sample=True)):
            dyn.run(x, policy=policy)
    assert torch.equal(x, before)
    assert all(torch.equal(value, kept[name]) for name, value in snapshot(dyn).items())


# -- selection ---------------------------------------------------------------------------------------


@given(st.lists(st.floats(-4, 4), min_size=4, max_size=4), st.floats(0, 1), st.integers(0, 4))
@settings(max_examples=50)
def test_selected_rows_are_what_the_rule_says(scores: list[float], threshold: float, top: int) -> None:
    choice = Choice("c", Domain.SIMPLEX, (1.0, 0, 0, 0), (0.0, 1, 0, 0), selection=Selection(threshold, top))
    logits = torch.tensor([scores])
    chosen = choice.check(Learned().decide(choice, 1, logits))[0].tolist()
    p: list[float] = logits.softmax(1)[0].tolist()
    order = sorted(range(4), key=lambda i: -p[i])
    kept = [i for place, i in enumerate(order) if p[i] >= threshold and (not top or place < top)] or order[:1]
    whole = sum(p[i] for i in kept)
    expected = [p[i] / whole if i in kept else 0.0 for i in range(4)]
    assert chosen == pytest.approx(expected, abs=1e-6)
    assert (max(chosen) == 1) == (len(kept) == 1)


def test_weights_outside_the_simplex_are_refused() -> None:
    choice = Choice("c", Domain.SIMPLEX, (1.0, 0.0), (0.0, 1.0))
    for bad in ([0.5, 0.6], [1.5, -0.5], [0.0, 0.0], [float("nan"), 1.0]):
        with pytest.raises(dc.RouteError, match="outside its domain"):
            choice.check(torch.tensor([bad]))
    assert choice.check(torch.tensor([[0.5, 0.50005]])).shape == (1, 2)


def test_routes_learned_by_random_routers_are_carried_out() -> None:
    dyn, one = undecided(dynamic(Cnn), source(Cnn).args), source(Cnn)
    with torch.no_grad():
        output, route = dyn.run(*one.args, policy=Learned())
        expected = torch.cat(
            [
                by_hand(dyn, one.args[0][i : i + 1], {b: dict(zip(NAMES, r, strict=True)) for b, r in rows})
                for i, rows in enumerate(
                    zip(*([(b, r) for r in route[f"route.{b}"].tolist()] for b in "ab"), strict=True)
                )
            ]
        )
    assert relative(expected, output) <= TOLERANCE
    assert len({tuple(r) for rows in route.values() for r in rows.tolist()}) > 2


# -- refusals and users' candidates ------------------------------------------------------------------


def _mine(place: Place) -> nn.Module | str:
    return nn.Conv2d(8, 8, 1) if place.takes == place.gives else "mine keeps shapes"


def test_users_register_their_own_candidates() -> None:
    register_candidate("mine", _mine)
    dyn = source(Cnn).dynamic("routing(candidates=('mine',))")
    assert list(dyn.choices) == ["route.a"]
    assert dyn.state_dict()["dyn.branches.a.mine.weight"].shape == (8, 8, 1, 1)
    assert any(r.reason == "mine keeps shapes" for r in dyn.plans[0].rejections)
    for name in ("identity", "half", "not a name", "original"):
        with pytest.raises(dc.SpecError, match="free identifier"):
            register_candidate(name, _mine)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("routing(candidates=('separabel3',))", "did you mean 'separable3'"),
        ("routing(candidates=())", "at least one"),
        ("routing(connections=all)", "connections is one of"),
        ("routing(per=model)", "per is one of"),
        ("routing(confidence=0.1)", "raise the confidence"),
        ("routing(threshold=0.01)", "raise the confidence or the threshold"),
        ("routing(connections=modules)", "needs include"),
        ("routing(include='(')", "regular expression"),
        ("routing(rank=0.0)", "rank lies"),
    ],
)
def test_bad_specs_are_refused(spec: str, reason: str) -> None:
    with pytest.raises(dc.SpecError) as error:
        source(Cnn).dynamic(spec)
    assert reason in str(error.value)


def test_reasons_are_told() -> None:
    with pytest.raises(dc.NoSiteError, match=r"excluded by '\.'"):
        source(Cnn).dynamic("routing(exclude='.')")
    with pytest.raises(dc.NoSiteError, match="no module has a path"):
        source(Cnn).dynamic("routing(connections=modules, include=nowhere)")
    with pytest.raises(dc.NoSiteError, match="no map"):
        Subject(
            nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)), (torch.randn(2, 4),), {}
        ).dynamic("routing(candidates=('separable3',))")


def test_what_a_connection_is_offered() -> None:
    dyn = dynamic(Cnn)
    for choice in dyn.choices.values():
        assert choice.labels == NAMES
        assert choice.full == (1.0, 0.0, 0.0, 0.0, 0.0)
        assert choice.smallest == (0.0, 1.0, 0.0, 0.0, 0.0)  # nothing runs
        assert choice.selection == Selection(0.2, 0)  # one over the number of alternatives
    net = Subject(nn.Sequential(nn.Conv2d(3, 8, 1), Residual(), Residual()), (torch.randn(2, 3, 6, 6),), {})
    shared, own = (
        net.dynamic("routing(candidates=('identity',))", per=per) for per in ("stage", "connection")
    )
    assert list(shared.choices) == ["route.1", "route.2"]
    hidden = "dyn.gates.route.2.reduce.weight"  # one router decides for a stage, its second head for the rest
    assert hidden not in shared.state_dict()
    assert hidden in own.state_dict()


class Maps(nn.Module):
    """A branch and a head on maps with one to three spatial axes."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        layer: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        norm: Any = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[axes - 1]
        self.stem, self.head = layer(2, 6, 1), nn.Linear(6, 5)
        self.branch = nn.Sequential(layer(6, 6, 3, padding=1), norm(6), nn.ReLU(), layer(6, 6, 1), norm(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head((x + self.branch(x)).flatten(2).mean(2))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_alternatives_map_channels_whatever_the_axes(axes: int) -> None:
    """With as many positions as channels, too."""
    torch.manual_seed(0)
    net, x = Maps(axes).eval(), torch.randn(4, 2, *(6, 3, 3)[:axes])
    dyn = dc.dynamize(net, "routing", x)
    dc.verify(dyn, net, x)
    state = dyn.state_dict()
    assert state["dyn.branches.branch.lowrank.layers.0.weight"].shape[2:] == (1,) * axes
    assert state["dyn.branches.branch.separable3.depthwise.weight"].shape == (6, 1, *(3,) * axes)


class Residual(nn.Sequential):
    """A residual block that keeps its shape."""

    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        return input.add_(y) if self.inplace else input + y


def test_alternatives_can_start_at_zero() -> None:
    dyn, (x,) = (
        source(Cnn).dynamic("routing(candidates=('separable3', 'lowrank'), zero=True)"),
        source(Cnn).args,
    )
    with torch.no_grad():
        outputs = [dyn.run(x, policy=dc.Forced(dyn.route(column)))[0] for column in (1, 2)]
    assert same(*outputs), "before training, alternatives that start at zero are alike"


def test_alternatives_are_the_same_every_time() -> None:
    """A checkpoint puts them in again, whatever was drawn before."""
    states: list[dict[str, Tensor]] = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        states.append(snapshot(source(Cnn).dynamic("routing(candidates=('separable3',))")))
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_connections_do_not_lie_in_one_another() -> None:
    dyn = source(Vgg).dynamic("routing(connections=modules, include='^one', candidates=('lowrank',))")
    assert list(dyn.choices) == ["route.one"]
    assert any(r.name == "one.0" and "inside one" in r.reason for r in dyn.plans[0].rejections)


def test_what_is_written_into_has_no_alternatives() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), Residual(inplace=True), nn.Flatten(), nn.Linear(288, 2))
    with pytest.raises(dc.NoSiteError, match="something writes into"):
        Subject(net, (torch.randn(2, 3, 6, 6),), {}).dynamic("routing(candidates=('lowrank',))")


def test_the_report_says_what_a_sample_reads() -> None:
    """By hand: half of the samples take a cheap alternative at one block, the others nothing there."""
    dyn, x = dynamic(Cnn), source(Cnn).args[0]
    weights = [
        {"a": {"separable3": 1.0}, "b": {"original": 1.0}},
        {"a": {"identity": 1.0}, "b": {"original": 1.0}},
    ]
    policy = dc.Forced(route_of([weights[i % 2] for i in range(len(x))]))
    found = evaluate_policy(dyn, [(x, torch.zeros(len(x)).long())], policy, batch_size=len(x))
    own = sum(p.numel() for p in source(Cnn).module.parameters())
    block = sum(p.numel() for name, p in source(Cnn).module.named_parameters() if name.startswith("a."))
    cheap = sum(p.numel() for n, p in dyn.named_parameters() if n.startswith("dyn.branches.a.separable3."))
    assert found.parameters == pytest.approx((own - block + cheap / 2) / own)


# -- training ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::dyncompile.errors.DyncompileWarning")
def test_the_recipe_fits_alternatives_and_meets_its_budget() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(128, 3, 8, 8), torch.arange(128) % 4
    for label in range(4):
        x[y == label, :, 2 * label : 2 * label + 2] += 1.0
    dyn = source(Cnn).dynamic("routing(candidates=('identity', 'lowrank'))")
    recipe = dc.recipes.routing(
        target=0.6,
        branch_epochs=8,
        joint_epochs=3,
        branches=Optimization(rate=5e-2),
        balance=0.1,
        diversity=0.1,
        consistency=0.1,
        view=lambda batch: batch,
    )
    frozen = snapshot(source(Cnn).module)
    first = dc.fit(dyn, Recipe("branches", recipe.phases[:1]), TensorDataset(x, y), batch_size=32)
    losses = [step.terms["matching"] for step in first.steps]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    assert all(torch.equal(dyn.state_dict()[name], value) for name, value in frozen.items())
    done = dc.fit(dyn, recipe, TensorDataset(x, y), TensorDataset(x, y), batch_size=32)
    assert done.calibration is not None
    assert done.calibration["reached"] == pytest.approx(0.6, abs=0.05)
    tasks = [step.terms["task"] for step in done.steps if "task" in step.terms]
    assert sum(tasks[-4:]) < sum(tasks[:4])


@pytest.mark.filterwarnings("ignore::dyncompile.errors.DyncompileWarning")
def test_the_recipe_by_worth_trains_what_will_run() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(128, 3, 8, 8), torch.arange(128) % 4
    dyn = source(Cnn).dynamic("routing(candidates=('separable3', 'narrow'), top=1)")
    recipe = dc.recipes.routing(target=0.7, teaching="worth", joint_epochs=1, router_epochs=2, hard_epochs=2)
    assert [(phase.name, phase.trains, phase.calibrate) for phase in recipe.phases] == [
        ("branches", "inserted", False),
        ("joint", "base", False),
        ("routers", "gates", False),
        ("hard", "base", True),
    ]
    data, first = TensorDataset(x, y), Recipe("shared", recipe.phases[:3])
    shared = dc.fit(dyn, first, data, batch_size=32, progress=False)
    assert shared.calibration is None
    learned = {n: value for n, value in snapshot(dyn).items() if n.startswith("dyn.gates.")}
    assert all(bool(value.any()) for n, value in learned.items() if n.endswith("head.weight")), "0 at first"
    last = Recipe("hard", recipe.phases[3:], target=0.7)
    done = dc.fit(dyn, last, data, data, batch_size=32, progress=False)
    per_epoch = len(done.steps) // 2
    for epoch in range(2):  # each epoch starts at the target, which the network then moves away from
        start = done.steps[epoch * per_epoch].macs
        assert start == pytest.approx(0.7, abs=0.12), "one batch of 32, with norms that see it"
    assert done.calibration is not None
    assert done.calibration["reached"] == pytest.approx(0.7, abs=0.03)
    moved = {n for n, value in learned.items() if not torch.equal(value, dyn.state_dict()[n])}
    assert moved == {f"dyn.gates.{choice}.head.bias" for choice in dyn.gated}
    with pytest.raises(dc.SpecError, match="relaxed routes or by worth"):
        dc.recipes.routing(teaching="hope")  # pyright: ignore[reportArgumentType]


def test_random_routes_are_those_that_selection_can_give() -> None:
    one, several = (
        Choice("c", Domain.SIMPLEX, (1.0, 0.0), (0.0, 1.0), (), Selection(0.5, top)) for top in (1, 0)
    )
    draw = dc.Sampled(0, per_sample=True)
    assert set(draw.decide(one, 64, None).flatten().tolist()) == {0.0, 1.0}
    assert len(draw.decide(several, 64, None).unique()) > 2


# -- the zoo -----------------------------------------------------------------------------------------


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("name", "connections"),
    [
        ("timm:resnet18", 8),
        ("torchvision:mobilenet_v2", 10),
        ("timm:efficientnet_b0", 9),
        ("timm:convnext_atto", 12),
        ("timm:vit_tiny_patch16_224", 24),
        ("hf:BertForSequenceClassification?num_hidden_layers=4", 8),
    ],
    ids=lambda value: str(value).partition("?")[0],
)
def test_networks_of_others_hold_the_contract(name: str, connections: int) -> None:
    """One connection per residual branch; every candidate that is not offered has a reason."""
    found = third_party(name)
    example = found.args or found.kwargs
    dyn = dc.dynamize(found.module, "routing(candidates=('identity', 'separable3', 'lowrank'))", example)
    assert len(dyn.choices) == connections
    refused = {r.name for r in dyn.plans[0].rejections if r.reason}
    for choice in dyn.choices.values():
        for candidate in {"identity", "separable3", "lowrank"} - set(choice.labels):
            assert f"{choice.name.removeprefix('route.')}: {candidate}" in refused
    assert dc.verify(dyn, found.module, example, routes=1).passed
