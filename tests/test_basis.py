"""BasisNet: oracles built by hand, costs, refusals, previews, and that bases separate."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dyncompile as dc
from dyncompile import previews
from dyncompile.runtime import synthesis
from dyncompile.spec import parse_spec
from dyncompile.verify.compare import count_macs
from tests import handmade
from tests.support import leaves, relative, same, snapshot, subject

ALL = "basisnet(overhead=100.0)"


class Net(nn.Module):
    """A stem, a depthwise and a strided convolution, a classifier: images [B, 3, 12, 12]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.last = nn.Conv2d(8, 16, 3, stride=2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 5]."""
        x = F.relu(self.depth(F.relu(self.norm(self.stem(x)))))
        return self.head(F.relu(self.last(x)).mean((2, 3)))


MIXED = ("stem", "depth", "last")


@torch.no_grad()
def mixed_net(spec: str = "basisnet", seed: int = 0) -> tuple[Net, dc.DynamicModel]:
    """A source, and a dynamic model of it whose bases are random."""
    torch.manual_seed(seed)
    net = Net().eval()
    net.norm.running_mean.uniform_(-1, 1)  # pyright: ignore
    dyn = dc.dynamize(net, spec, torch.randn(2, 3, 12, 12)).eval()
    stir(dyn)
    return net, dyn


@torch.no_grad()
def stir(dyn: dc.DynamicModel) -> None:
    """Random bases."""
    random = torch.Generator().manual_seed(1)
    for name, parameter in dyn.named_parameters():
        if name.startswith("dyn.bases."):
            assert not parameter.any()
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=random))


@torch.no_grad()
def by_hand(net: Net, dyn: dc.DynamicModel, row: Tensor) -> Net:
    """A static network with the mixed weights."""
    own = copy.deepcopy(net)
    blocks = row.view(len(MIXED), -1) if len(row) > 4 else row.expand(len(MIXED), -1)
    for layer, block in zip(MIXED, blocks, strict=True):
        bases = dyn.get_parameter(f"dyn.bases.{layer}.weight")
        weight = own.get_submodule(layer).weight
        for n, a in enumerate(block):
            weight.add_(a * bases[n])  # pyright: ignore
    return own


@pytest.mark.parametrize("shared", [False, True])
def test_forced_coefficients_give_the_network_of_the_mixed_weights(shared: bool) -> None:
    net, dyn = mixed_net(f"basisnet(shared={shared}, exit=False)")
    x = torch.randn(5, 3, 12, 12)
    rows = torch.randn(5, dyn.choices["basis"].width)
    together = dyn.run(x, policy=dc.Forced({"basis": rows}))[0]
    for i, row in enumerate(rows):
        one = by_hand(net, dyn, row)
        assert relative(one(x[i : i + 1]), together[i : i + 1]) < 1e-6
        static = dc.specialize(dyn, {"basis": rows[i : i + 1]})
        assert relative(one(x), static(x)) < 1e-6
        for layer in MIXED:
            weight = one.get_submodule(layer).weight
            torch.testing.assert_close(static.get_parameter(f"{layer}.weight"), weight)
        assert count_macs(lambda one=static: one(x[:1])) == float(dyn.macs({"basis": rows})[i])


@torch.no_grad()
def test_untrained_kernels_are_the_sources_bit_for_bit() -> None:
    torch.manual_seed(0)
    net = Net().eval()
    dyn = dc.dynamize(net, "basisnet", torch.randn(2, 3, 12, 12)).eval()
    x = torch.randn(4, 3, 12, 12)
    learned, route = dyn.run(x, policy=dc.Learned())
    assert not route["basis.exit"].any()
    assert len(route["basis"].unique(dim=0)) == 4  # every sample has kernels of its own
    assert relative(net(x), learned) < 1e-6
    static = dc.specialize(dyn, {"basis": route["basis"][1:2]})
    for name, value in net.state_dict().items():
        if "num_batches" not in name:
            assert torch.equal(static.state_dict()[name], value), name
    assert torch.equal(static(x), net(x))
    assert torch.equal(dyn.run(x, policy=dc.Forced({"basis": route["basis"][1:2]}))[0], net(x))


def test_parameters_that_a_sample_reads_are_the_weights_and_all_their_bases() -> None:
    net, dyn = mixed_net()
    bases = sum(p.numel() for name, p in dyn.named_parameters() if name.startswith("dyn.bases."))
    own = sum(p.numel() for p in net.parameters())
    assert bases > own
    assert float(dyn.active_parameters(dyn.route({}))) == own + bases


def test_full_capacity_stays_the_sources_network_when_bases_are_trained() -> None:
    net, dyn = mixed_net()
    x = torch.randn(4, 3, 12, 12)
    with torch.no_grad():
        assert same(net(x), dyn.run(x, policy=dc.Full())[0])
    assert dc.verify(dyn, net, x).passed


@torch.no_grad()
def test_a_forced_exit_is_the_preview_alone_and_costs_exactly_that() -> None:
    _, dyn = mixed_net()
    x = torch.randn(5, 3, 12, 12)
    stop = {"basis.exit": torch.ones(1, 1)}
    preview = previews.mirror(subject_of(Net()), width=0.5, resolution=0.5).eval()
    for name, parameter in preview.state_dict().items():
        parameter.copy_(dyn.state_dict()[f"dyn.previews.basis.{name}"])
    expected = preview(x)[0]
    assert preview.side == (6, 6)
    assert preview.get_parameter("last.weight").shape == (8, 4, 3, 3)
    assert same(expected, dyn.run(x, policy=dc.Forced(stop))[0])
    static = dc.specialize(dyn, stop)
    assert same(expected, static(x))
    counted = count_macs(lambda: preview(x[:1]))
    by_formula = 36 * 27 * 4 + 36 * 9 * 4 + 4 * 4 * 9 * 8 + 8 * 5
    assert counted == by_formula == float(dyn.macs({**dyn.route({}), **stop})[0])
    assert not any(name.startswith(("stem", "last", "dyn.bases")) for name in static.state_dict())
    assert same(expected, dyn.run(x, policy=dc.Smallest())[0])


def subject_of(net: nn.Module) -> dc.Program:
    from dyncompile.capture import capture

    return capture(net, (torch.randn(2, 3, 12, 12),))


def test_expected_macs_are_those_of_the_preview_and_of_who_goes_on() -> None:
    _, dyn = mixed_net()
    stop = torch.tensor([[1.0], [0.0], [1.0], [0.0]])
    route = {"basis.exit": stop, "basis": torch.rand(4, 12)}
    preview = 36 * 27 * 4 + 36 * 9 * 4 + 4 * 4 * 9 * 8 + 8 * 5
    specialist = 144 * 27 * 8 + 144 * 9 * 8 + 25 * 8 * 9 * 16 + 16 * 5
    synthesis_cost = 4 * (27 * 8 + 9 * 8 + 8 * 9 * 16)
    coefficients = 8 * 12
    goes_on = preview + coefficients + specialist + synthesis_cost
    assert dyn.static_macs == specialist
    assert dyn.macs(route).tolist() == [preview, specialist, preview, specialist]
    assert dyn.spent(route).tolist() == [preview, goes_on, preview, goes_on]
    assert dyn.decision_macs == goes_on - specialist
    half = {"basis.exit": torch.full((1, 1), 0.25), "basis": torch.rand(1, 12)}
    expected = preview + 0.75 * (goes_on - preview)
    assert dyn.spent(half).item() == pytest.approx(expected)


def test_without_exit_the_preview_is_the_price_of_a_decision() -> None:
    _, dyn = mixed_net("basisnet(exit=False)")
    _, other = mixed_net()
    assert list(dyn.choices) == ["basis"]
    assert dyn.decision_macs == other.decision_macs
    assert dyn.macs(dyn.route({})).item() == dyn.static_macs


@torch.no_grad()
def test_rows_that_leave_do_not_run_the_specialist(monkeypatch: pytest.MonkeyPatch) -> None:
    _, dyn = mixed_net()
    sizes: list[int] = []
    original = synthesis._mixed  # pyright: ignore[reportPrivateUsage]

    def noting(x: Tensor, *rest: object) -> Tensor:
        sizes.append(len(x))
        return original(x, *rest)  # pyright: ignore

    monkeypatch.setattr(synthesis, "_mixed", noting)
    x = torch.randn(6, 3, 12, 12)
    dyn.eval()
    _confident(dyn, x)
    sizes.clear()
    output, route = dyn.run(x, policy=dc.Learned())
    goes_on = int((route["basis.exit"] == 0).sum())
    assert 0 < goes_on < 6
    assert sizes == [goes_on] * 3
    record = dyn.record(x, policy=dc.Learned())
    left = route["basis.exit"][:, 0] > 0
    assert bool(record.logits["basis"][left].isnan().all())
    assert not bool(record.logits["basis"][~left].isnan().any())
    alone = torch.cat([dyn.run(x[i : i + 1], policy=dc.Learned())[0] for i in range(6)])
    torch.testing.assert_close(output, alone)
    sizes.clear()
    dyn.run(x, policy=dc.Smallest())
    assert sizes == []
    whole = dyn.record(x, policy=dc.Learned(), execution="dense")
    torch.testing.assert_close(output, whole.output)


@torch.no_grad()
def _confident(dyn: dc.DynamicModel, x: Tensor) -> None:
    """A threshold between the confidences of the samples."""
    threshold = dyn.get_buffer("dyn.exits.basis.exit.threshold").zero_()
    scores = dyn.record(x, policy=dc.Learned(), execution="dense").logits["basis.exit"]
    threshold.copy_(scores.median() + 1e-6)


def test_identical_bases_separate_since_coefficients_are_random() -> None:
    _, dyn = mixed_net()
    with torch.no_grad():
        for name, parameter in dyn.named_parameters():
            if name.startswith("dyn.bases."):
                parameter.zero_()
    head = dyn.get_parameter("dyn.gates.basis.head.weight")
    assert bool(head.any())
    x = torch.randn(4, 3, 12, 12)

    def gradient() -> Tensor:
        dyn.zero_grad()
        record = dyn.record(x, policy=dc.Learned(), execution="dense")
        record.output.square().sum().backward()
        found = dyn.get_parameter("dyn.bases.last.weight").grad
        assert found is not None
        return found

    apart = gradient()
    assert not torch.allclose(apart[0], apart[1])
    with torch.no_grad():  # what a net that starts at zero would do
        head.zero_()
        dyn.get_parameter("dyn.gates.basis.head.bias").zero_()
    alike = gradient()
    torch.testing.assert_close(alike[0], alike[1])


def test_a_seed_of_its_own_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    program = subject_of(Net())
    before = torch.random.get_rng_state()
    first = dc.dynamize(Net(), "basisnet", torch.zeros(2, 3, 12, 12))
    del program, before
    second = dc.dynamize(Net(), "basisnet", torch.zeros(2, 3, 12, 12))
    name = "dyn.gates.basis.head.weight"
    assert torch.equal(first.get_parameter(name), second.get_parameter(name))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "free"])
def test_activations_of_coefficients(activation: str) -> None:
    _, dyn = mixed_net(f"basisnet(activation={activation}, temperature=2.0, exit=False)")
    x = torch.randn(3, 3, 12, 12)
    record = dyn.record(x, policy=dc.Learned())
    rows = record.route["basis"]
    assert same(rows, record.logits["basis"])
    if activation == "softmax":
        torch.testing.assert_close(rows.view(3, 3, 4).sum(2), torch.ones(3, 3))
    if activation == "sigmoid":
        assert bool(((rows > 0) & (rows < 1)).all())


def test_weights_that_few_positions_share_are_left_alone_and_said_so() -> None:
    _, dyn = mixed_net("basisnet(overhead=0.1)")
    assert [site.name for site in dyn.plans[0].sites] == ["stem.weight", "depth.weight", "output"]
    reasons = {one.name: one.reason for one in dyn.plans[0].rejections}
    assert reasons["last.weight"].startswith("synthesis would cost 0.16 times the layer")
    assert reasons["head.weight"].startswith("synthesis would cost 4 times the layer")
    text = dyn.explain()
    assert "synthesis would cost" in text
    assert "preview source" in text


def test_tied_and_embedded_weights_are_refused() -> None:
    found = subject(handmade.bert_like)
    dyn = found.dynamic(ALL)
    reasons = {one.name: one.reason for one in dyn.plans[0].rejections}
    assert any("embedding" in reason for reason in reasons.values())
    assert "preview stage" in dyn.explain()
    assert any("before the preview" in reason for reason in reasons.values()) or reasons


def test_networks_without_class_scores_keep_their_output() -> None:
    class Map(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(F.relu(self.one(x)))

    dyn = dc.dynamize(Map(), "basisnet", torch.randn(2, 3, 12, 12))
    assert list(dyn.choices) == ["basis"]
    assert "no row of class scores" in dyn.explain()
    assert dc.verify(dyn, dyn_source(dyn, Map()), torch.randn(2, 3, 12, 12)).passed


def dyn_source(dyn: dc.DynamicModel, net: nn.Module) -> nn.Module:
    """`net` with the dynamic model's weights."""
    net.load_state_dict({name: dyn.state_dict()[name] for name in net.state_dict()})
    return net


def test_a_registered_preview_looks_first() -> None:
    def tiny(shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * shape[0], classes))

    with pytest.raises(dc.SpecError, match="no preview is named 'tiny_test'"):
        dc.dynamize(Net(), "basisnet(preview='tiny_test')", torch.zeros(2, 3, 12, 12))
    dc.register_preview("tiny_test", tiny)
    with pytest.raises(dc.SpecError, match="exists already"):
        dc.register_preview("tiny_test", tiny)
    net, dyn = mixed_net("basisnet(preview=tiny_test)")
    assert float(dyn.macs({**dyn.route({}), "basis.exit": torch.ones(1, 1)})[0]) == 60
    assert dc.verify(dyn, net, torch.randn(2, 3, 12, 12)).passed


def test_a_stage_preview_decides_for_what_comes_after_it() -> None:
    net, dyn = mixed_net("basisnet(preview=stage, overhead=100.0)")
    reasons = {one.name: one.reason for one in dyn.plans[0].rejections}
    assert "is used before the preview" in reasons["stem.weight"]
    assert dc.verify(dyn, net, torch.randn(2, 3, 12, 12)).passed


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("basisnet(bases=0)", "bases is at least 1"),
        ("basisnet(width=0.0)", "lie in"),
        ("basisnet(activation=relu)", "an activation is one of"),
        ("basisnet(confidence=vote)", "a confidence one of"),
        ("basisnet(temperature=0)", "temperature"),
    ],
)
def test_bad_settings_are_refused(spec: str, problem: str) -> None:
    with pytest.raises(dc.SpecError, match=problem):
        parse_spec(spec)


def test_nothing_to_mix_is_an_error_with_reasons() -> None:
    with pytest.raises(dc.NoSiteError, match="synthesis would cost"):
        dc.dynamize(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), "basisnet", torch.zeros(2, 3, 2, 2))


@pytest.mark.parametrize("order", [0, 1])
@torch.no_grad()
def test_narrow_widths_narrow_bases(order: int) -> None:
    torch.manual_seed(0)
    net = Net().eval()
    passes = ["basisnet(exit=False)", "dsnet(gate=False, divisor=1, minimum=1, ratios=(0.5, 1.0))"]
    dyn = dc.dynamize(net, passes[:: 1 - 2 * order], torch.randn(2, 3, 12, 12)).eval()
    stir(dyn)
    rows = torch.rand(1, 12)
    x = torch.randn(3, 3, 12, 12)
    route = {**dyn.route(0), "basis": rows}
    whole = by_hand(net, dyn, rows[0])
    static = dc.specialize(dyn, route)
    torch.testing.assert_close(static.get_parameter("depth.weight"), whole.depth.weight[:4])
    torch.testing.assert_close(static.get_parameter("last.weight"), whole.last.weight[:8, :4])
    torch.testing.assert_close(static(x), dyn.run(x, policy=dc.Forced(route))[0])
    mixed = {"width": torch.eye(2)[[0, 1, 0]], "basis": torch.rand(3, 12)}
    together = dyn.run(x, policy=dc.Forced(mixed))[0]
    for i in range(3):
        one = dc.specialize(dyn, {name: value[i : i + 1] for name, value in mixed.items()})
        torch.testing.assert_close(one(x[i : i + 1]), together[i : i + 1])
        assert count_macs(lambda one=one: one(x[:1])) == float(dyn.macs(mixed)[i])


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "free"])
@torch.no_grad()
def test_deployment_folds_norms_into_all_bases_and_mixes_whole_kernels(activation: str) -> None:
    net, dyn = mixed_net(f"basisnet(activation={activation}, exit=False)")
    net.norm.weight.uniform_(0.5, 1.5)
    dyn.load_state_dict({**dyn.state_dict(), "norm.weight": net.norm.weight})
    fast = dc.deploy(dyn)
    listing = fast.program.listing("eval")
    assert "batch_norm" in dyn.program.listing("eval")
    assert "batch_norm" not in listing
    bases, own = fast.get_parameter("dyn.bases.depth.weight"), dyn.get_parameter("dyn.bases.depth.weight")
    whole = activation == "softmax"
    torch.testing.assert_close(bases, own + net.depth.weight if whole else own)
    x = torch.randn(5, 3, 12, 12)
    rows = torch.randn(5, 12)
    policies = (dc.Learned(), dc.Full(), dc.Forced({"basis": rows}), dc.Forced({"basis": rows.softmax(1)}))
    for policy in policies:
        for count in (1, 5):
            given = policy if not isinstance(policy, dc.Forced) else _forced(policy, count)
            expected = dyn.run(x[:count], policy=given)[0]
            torch.testing.assert_close(fast.run(x[:count], policy=given)[0], expected)


def _forced(policy: dc.Forced, count: int) -> dc.Forced:
    return dc.Forced({name: rows[:count] for name, rows in policy.route.items()})


def test_copies_are_independent_and_checkpoints_whole(tmp_path: object) -> None:
    net, dyn = mixed_net()
    other = copy.deepcopy(dyn).double()
    before = snapshot(dyn)
    x = torch.randn(2, 3, 12, 12)
    out = other.run(x.double(), policy=dc.Learned())[0]
    assert out.dtype is torch.float64
    torch.testing.assert_close(out.float(), dyn.run(x, policy=dc.Learned())[0], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        other.get_parameter("dyn.bases.stem.weight").add_(1)
    assert all(torch.equal(value, snapshot(dyn)[name]) for name, value in before.items())
    dc.save(dyn, tmp_path)  # pyright: ignore
    loaded = dc.load(tmp_path, net)  # pyright: ignore
    assert same(leaves(loaded.eval().run(x, policy=dc.Learned())[0]), dyn.run(x, policy=dc.Learned())[0])
