"""LC-Net's layers against networks whose branches are left out and scaled by hand; what the pass refuses."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dyncompile as dc
from dyncompile.analysis.facts import analyze
from dyncompile.pipeline import spec_of
from dyncompile.spec import parse_spec
from dyncompile.verify import count_macs
from tests import gating_nets, handmade
from tests.gating_nets import Residual, by_hand
from tests.nets import randomize
from tests.oracles import narrowed, state_of
from tests.support import Subject, relative, same, snapshot, subject, undecided

TOLERANCE = 1e-5
LAYERS = "lcnet(channels=False)"
GAINS = (0.0, 1.0, 0.5, 1.5)
"""What rows draw their gains from; the domain of gains has no upper end."""


def _images() -> tuple[Tensor, ...]:
    return (torch.randn(6, 3, 8, 8),)


def _sentences() -> tuple[Tensor, ...]:
    return torch.randint(11, (6, 6)), torch.tensor([6, 3, 1, 4, 6, 2])


def _vectors(*shape: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(6, *shape),)


@dataclass(frozen=True)
class Case:
    """A network, its inputs, and the names of its branches in the order of their sums."""

    build: type[Residual]
    inputs: Callable[[], tuple[Tensor, ...]]
    branches: tuple[str, ...]


BLOCKS = tuple(f"blocks.{i}{part}" for i in (0, 1) for part in (".attn", ".mlp"))
CASES = {
    "cnn": Case(gating_nets.Cnn, _images, ("a", "b", "c")),
    "reread": Case(gating_nets.Reread, _images, ("a", "b", "c")),
    "pre-norm": Case(gating_nets.PreNorm, _images, BLOCKS),
    "post-norm": Case(gating_nets.PostNorm, _sentences, ("blocks.0", "blocks.0#2", "blocks.1", "blocks.1#2")),
    "sequence first": Case(gating_nets.SequenceFirst, _vectors(5, 6), ("first", "second")),
    "windows": Case(gating_nets.Windows, _vectors(4, 4, 6), ("attn", "mlp")),
    "broadcast": Case(gating_nets.Broadcast, _vectors(5, 6), ("first", "second")),
    "nested": Case(gating_nets.Nested, _vectors(6), ("early", "late", "model", "last")),
    "viewed": Case(gating_nets.Viewed, _vectors(5, 6), ("first", "second")),
    "written": Case(gating_nets.Written, _vectors(5, 6), ("first", "second")),
    "on input": Case(gating_nets.OnInput, _vectors(8, 5), ("first", "second")),
    "expanded": Case(gating_nets.Expanded, _vectors(5, 6), ("first", "second")),
}


@cache
def source(name: str) -> Subject:
    """The network of a case; shared, so nobody may change it."""
    torch.manual_seed(3)
    case = CASES[name]
    with torch.no_grad():
        net = randomize(case.build()).eval()
    return Subject(net, case.inputs(), {})


@cache
def dynamic(name: str, spec: str = LAYERS) -> dc.DynamicModel:
    """Shared, in evaluation mode: nobody may change it."""
    return source(name).dynamic(spec)


def net_of(name: str) -> Residual:
    module = source(name).module
    assert isinstance(module, Residual)
    return module


def layers(gains: Mapping[str, Sequence[float]]) -> dict[str, Tensor]:
    """A route of the gains of branches, one per row."""
    return {f"layer.{name}": torch.tensor([[gain] for gain in rows]) for name, rows in gains.items()}


def drawn(name: str, rows: int = 6, seed: int = 0) -> dict[str, list[float]]:
    """Random gains per branch and row, of which every branch has some that are 0 and some that are not."""
    random = torch.Generator().manual_seed(seed)
    while True:
        table = {
            branch: [GAINS[int(i)] for i in torch.randint(4, (rows,), generator=random)]
            for branch in CASES[name].branches
        }
        if all(0 < sum(gain == 0 for gain in gains) < rows for gains in table.values()):
            return table


def row(gains: Mapping[str, Sequence[float]], i: int) -> dict[str, float]:
    return {name: values[i] for name, values in gains.items()}


def rows_by_hand(name: str, gains: Mapping[str, Sequence[float]]) -> Tensor:
    """Every row alone through the network with its branches left out and scaled."""
    alone = [tuple(x[i : i + 1] for x in source(name).args) for i in range(6)]
    return torch.cat([by_hand(net_of(name), inputs, row(gains, i)) for i, inputs in enumerate(alone)])


def single_gains(name: str) -> list[dict[str, float]]:
    """Every branch left out alone, all left out, all scaled, and what is drawn."""
    names = CASES[name].branches
    alone = [{name: 0.0} for name in names]
    table = drawn(name, seed=7)
    return [*alone, dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.5), row(table, 0), row(table, 1)]


# -- layers: outputs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_every_branch_is_a_choice(name: str) -> None:
    dyn = dynamic(name)
    assert list(dyn.choices) == [f"layer.{branch}" for branch in CASES[name].branches]
    assert {choice.width for choice in dyn.choices.values()} == {1}
    assert sorted(dyn.gated) == sorted(dyn.choices)


@pytest.mark.parametrize("name", CASES)
def test_the_network_by_hand_is_the_source(name: str) -> None:
    one = source(name)
    with torch.no_grad():
        assert torch.equal(one.expected(), by_hand(net_of(name), one.args, {}))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("execution", ["sparse", "dense"])
def test_rows_of_different_gains_run_together(name: str, execution: Any) -> None:
    gains = drawn(name)
    with torch.no_grad():
        expected = rows_by_hand(name, gains)
        record = dynamic(name).record(
            *source(name).args, policy=dc.Forced(layers(gains)), execution=execution
        )
        assert relative(expected, record.output) <= TOLERANCE
        assert relative(expected, source(name).expected()) > 0.01
        assert relative(expected, rows_by_hand(name, gains)) == 0, "the inputs have changed"
    assert {k: v.tolist() for k, v in record.route.items()} == {
        k: v.tolist() for k, v in layers(gains).items()
    }


@pytest.mark.parametrize("name", CASES)
def test_one_route_for_all_is_the_network_without_these_branches(name: str) -> None:
    """Its cost is what torch counts of that network, and a specialized network is no more than it."""
    one, dyn = source(name), dynamic(name)
    first = tuple(x[:1] for x in one.args)
    with torch.no_grad():
        for gains in single_gains(name):
            route = layers({branch: [gain] for branch, gain in gains.items()})
            expected = by_hand(net_of(name), one.args, gains)
            actual, taken = dyn.run(*one.args, policy=dc.Forced(route))
            static = dc.specialize(dyn, route)
            assert relative(expected, actual) <= TOLERANCE, gains
            assert relative(expected, static(*one.args)) <= TOLERANCE, gains
            counted = count_macs(lambda gains=gains: by_hand(net_of(name), first, gains))
            assert dyn.macs(taken).tolist() == [counted] * 6, gains
            assert counted == count_macs(lambda static=static: static(*first)), gains


@pytest.mark.parametrize("name", ["cnn", "pre-norm", "post-norm"])
@pytest.mark.parametrize("which", range(6))
def test_training_with_one_route_is_training_the_network_without_these_branches(
    name: str, which: int
) -> None:
    """Outputs, gradients and statistics, under one seed; what is skipped has no gradient and stays."""
    gains = single_gains(name)[which]
    dyn, net = copy.deepcopy(dynamic(name)).train(), copy.deepcopy(net_of(name)).train()
    before = snapshot(net)
    route = layers({branch: [gain] for branch, gain in gains.items()})
    torch.manual_seed(11)
    expected = by_hand(net, source(name).args, gains)
    torch.manual_seed(11)
    actual = dyn.run(*source(name).args, policy=dc.Forced(route))[0]
    assert relative(expected, actual) <= TOLERANCE
    expected.square().sum().backward()
    actual.square().sum().backward()
    for key, parameter in net.named_parameters():
        found = dyn.get_parameter(key).grad
        assert (found is None) == (parameter.grad is None), key
        if parameter.grad is not None:
            assert relative(parameter.grad, found) <= 1e-4, key
    own = dict(dyn.named_buffers())
    for key, buffer in net.named_buffers():
        assert relative(buffer, own[key]) <= TOLERANCE, key
        # By hand nobody counts the batches of what is skipped, nor moves its statistics.
        assert torch.equal(buffer, before[key]) == torch.equal(own[key], before[key]), key
    if name == "cnn" and "a" in gains and gains["a"] == 0:
        assert torch.equal(own["a.norm1.running_mean"], before["a.norm1.running_mean"])
        assert int(own["a.norm2.num_batches_tracked"]) == 0
        assert int(own["norm.num_batches_tracked"]) == 1


@pytest.mark.parametrize("name", ["cnn", "pre-norm"])
def test_training_runs_a_branch_for_the_rows_that_need_it(name: str) -> None:
    """Its norms see these rows, and noise is drawn for these rows."""
    gains = drawn(name)
    dyn, net = copy.deepcopy(dynamic(name)).train(), copy.deepcopy(net_of(name)).train()
    (images,) = source(name).args
    torch.manual_seed(12)
    y = stem = net.before(images)
    for branch, part in net.parts({}, images).items():
        factor = torch.tensor(gains[branch])
        on = factor.nonzero().flatten()
        kept = part.kept(y)
        added = torch.zeros_like(kept).index_copy(0, on, part.branch(y[on]))
        y = part.after(kept + factor.view(-1, *[1] * (kept.dim() - 1)) * added)
    expected = net.behind(y, stem)
    torch.manual_seed(12)
    actual = dyn.run(images, policy=dc.Forced(layers(gains)))[0]
    assert relative(expected, actual) <= TOLERANCE
    own = dict(dyn.named_buffers())
    for key, buffer in net.named_buffers():
        assert relative(buffer, own[key]) <= TOLERANCE, key


def test_gradients_of_gains_are_those_of_a_network_that_multiplies() -> None:
    """Those of gains at 0 as well: a branch that is off has to be able to come back."""
    dyn, net = copy.deepcopy(dynamic("cnn")).double(), copy.deepcopy(net_of("cnn")).double()
    images = source("cnn").args[0].double()
    gains = {name: torch.tensor(rows, dtype=torch.float64) for name, rows in drawn("cnn").items()}
    leaves = {name: rows.requires_grad_() for name, rows in gains.items()}
    y = stem = net.before(images)
    for branch, part in net.parts({}, images).items():
        y = part.after(part.kept(y) + leaves[branch][:, None, None, None] * part.branch(y))
    expected = torch.autograd.grad(net.behind(y, stem).square().sum(), list(leaves.values()))
    route = {f"layer.{name}": rows.detach()[:, None].requires_grad_() for name, rows in leaves.items()}
    output = dyn.record(images, policy=dc.Forced(route), execution="dense").output
    actual = torch.autograd.grad(output.square().sum(), list(route.values()))
    for mine, theirs in zip(expected, actual, strict=True):
        assert (mine != 0).all()
        assert torch.allclose(mine, theirs.flatten())


@pytest.mark.parametrize("policy", [dc.Forced, dc.Learned])
def test_nobody_writes_into_what_is_given_or_returned(policy: Any) -> None:
    torch.manual_seed(4)
    net, x = gating_nets.Steps().eval(), torch.randn(6, 5, 6)
    dyn = undecided(Subject(net, (x,), {}).dynamic(LAYERS), (x,))
    before = x.clone()
    gains = {"layer.first": [0.0, 0.5, 0.0, 1.0, 0.5, 0.0], "layer.second": [0.5, 0.0, 0.0, 0.0, 1.0, 1.0]}
    forced = {name: torch.tensor([[gain] for gain in rows]) for name, rows in gains.items()}
    with torch.no_grad():
        output, route = dyn.run(x, policy=policy(forced) if policy is dc.Forced else policy())
        first, second = (route[name][:, :, None] for name in gains)
        stem = net.before(x)
        middle = stem + first * net.first(stem)
        last = middle + second * net.second(middle)
    expected = {"steps": [stem, middle, last], "logits": net.head(last)}
    assert relative(expected, output) <= TOLERANCE
    assert torch.equal(x, before)


# -- layers: what runs -------------------------------------------------------------------------------


def test_macs_of_the_cnn_by_arithmetic() -> None:
    """Images of 8 x 8; the second block halves both sides."""
    stem, head = 3 * 8 * 9 * 64, 16 * 5
    a = 8 * 12 * 9 * 64 + 12 * 8 * 9 * 64
    b = 8 * 10 * 9 * 16 + 10 * 16 * 9 * 16
    shortcut = 8 * 16 * 16
    c = 2 * 16 * 9 * 9 * 16
    dyn = dynamic("cnn")
    assert dyn.static_macs == stem + a + b + shortcut + c + head
    assert dyn.decision_macs == 8 + 8 + 16
    for on in itertools.product((0, 1), repeat=3):
        route = layers({name: [float(bit)] for name, bit in zip("abc", on, strict=True)})
        expected = stem + shortcut + head + on[0] * a + on[1] * b + on[2] * c
        assert dyn.macs(route).tolist() == [expected]


def test_the_gradient_of_the_cost_is_what_a_branch_costs() -> None:
    dyn = dynamic("cnn")
    route = layers({"a": [0.5, 0.0], "b": [1.0, 1.0], "c": [1.0, 0.0]})
    route["layer.a"].requires_grad_()
    dyn.macs(route).sum().backward()
    assert route["layer.a"].grad is not None
    assert route["layer.a"].grad.flatten().tolist() == [2 * 8 * 12 * 9 * 64] * 2


@pytest.mark.parametrize("name", CASES)
def test_what_rows_skip_is_not_computed(name: str) -> None:
    """Torch counts as many MACs as the routes of the rows cost together."""
    dyn, gains = dynamic(name), drawn(name, seed=2)
    route = layers(gains)
    counted = count_macs(lambda: dyn.run(*source(name).args, policy=dc.Forced(route)))
    assert counted == float(dyn.macs(route).sum())
    assert counted < 6 * dyn.static_macs


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", CASES)
def test_what_a_skipped_branch_would_give_does_not_matter(name: str, value: float) -> None:
    spoiled, gains = CASES[name].branches[0], drawn(name)
    module = (
        "blocks.0.o" if name == "post-norm" else spoiled
    )  # a block's other branch is no module of its own
    dyn = copy.deepcopy(dynamic(name))
    with torch.no_grad():
        for key, parameter in dyn.named_parameters():
            if key.startswith(f"{module}."):
                parameter.fill_(value)
        output, _ = dyn.run(*source(name).args, policy=dc.Forced(layers(gains)))
        expected = rows_by_hand(name, gains)
    hit = [gain != 0 for gain in gains[spoiled]]
    if name == "nested":
        hit = [on and outer != 0 for on, outer in zip(hit, gains["model"], strict=True)]
    finite = output.flatten(1).isfinite().all(1)
    assert finite.tolist() == [not one for one in hit]
    assert 0 < int(finite.sum()) < 6
    assert relative(expected[finite], output[finite]) <= TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_a_specialized_network_holds_nothing_of_a_skipped_branch(name: str) -> None:
    net, one = net_of(name), source(name)
    for branch in CASES[name].branches:
        used = copy.deepcopy(net).train()
        by_hand(used, one.args, {branch: 0.0}).sum().backward()
        kept = {key for key, parameter in used.named_parameters() if parameter.grad is not None}
        static = dc.specialize(dynamic(name), layers({branch: [0.0]}))
        assert {key for key, _ in static.named_parameters()} == kept
        norms = {key.rpartition(".")[0] for key in static.state_dict() if "running" in key}
        assert all(f"{norm}.weight" in kept for norm in norms)


# -- layers: decision nets ---------------------------------------------------------------------------


def gain_by_hand(dyn: dc.DynamicModel, choice: str, features: Tensor) -> Tensor:
    """Mean over positions, one or two linear layers, cut off at 0 and 1."""
    w = {key.rpartition(f"{choice}.")[2]: p for key, p in dyn.named_parameters() if f".{choice}." in key}
    if "reduce.weight" in w:
        features = F.relu(F.linear(features, w["reduce.weight"], w["reduce.bias"]))
    return F.linear(features, w["head.weight"], w["head.bias"]).clamp(0, 1)


@pytest.mark.parametrize("spec", [LAYERS, "lcnet(channels=False, hidden=5)"])
def test_gains_come_from_the_input_of_their_block(spec: str) -> None:
    """Row by row: what runs later reads what was decided before."""
    (images,) = source("cnn").args
    dyn, net = undecided(dynamic("cnn", spec), (images,)), net_of("cnn")
    outputs: list[Tensor] = []
    found: list[list[float]] = []
    with torch.no_grad():
        record = dyn.record(images, policy=dc.Learned())
        for image in images.split(1):
            y = stem = net.before(image)
            found.append([])
            for branch, part in net.parts({}, image).items():
                gain = float(gain_by_hand(dyn, f"layer.{branch}", y.mean((2, 3))))
                found[-1].append(gain)
                y = part(y, gain)
            outputs.append(net.behind(y, stem))
    taken = torch.cat([record.route[f"layer.{name}"] for name in "abc"], 1)
    assert torch.allclose(torch.tensor(found), taken, atol=1e-5)
    assert len({tuple(gain == 0 for gain in gains) for gains in found}) > 2
    assert any(0 < gain < 1 for gains in found for gain in gains)
    assert relative(torch.cat(outputs), record.output) <= TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_what_decision_nets_say_is_carried_out(name: str) -> None:
    """Rows are those of networks by hand, and all that they cost more is the decision nets."""
    one = source(name)
    dyn = undecided(dynamic(name), one.args)
    with torch.no_grad():
        output, route = dyn.run(*one.args, policy=dc.Learned())
        gains = {key.removeprefix("layer."): rows.flatten().tolist() for key, rows in route.items()}
        assert any(len(set(rows)) > 2 for rows in gains.values())
        expected = rows_by_hand(name, gains)
    assert relative(expected, output) <= TOLERANCE

    def run() -> None:
        with torch.no_grad():
            dyn.run(*one.args, policy=dc.Learned())

    assert count_macs(run) == float(dyn.macs(route).sum()) + 6 * dyn.decision_macs


FULL = ("lcnet", "lcnet(bits=True)", "lcnet(hidden=3, grid=2, block=2)")


@pytest.mark.parametrize("spec", FULL)
@pytest.mark.parametrize("name", CASES)
def test_untrained_it_is_the_source_bit_for_bit(name: str, spec: str) -> None:
    one, dyn = source(name), dynamic(name, spec)
    with torch.no_grad():
        for policy in (dc.Full(), dc.Learned()):
            assert same(one.expected(), dyn.run(*one.args, policy=policy)[0])
        assert same(one.expected(), dyn(*one.args))
    for policy in (dc.Full(), dc.Learned()):  # gradients on: decision nets run masked
        record = dyn.record(*one.args, policy=policy)
        assert same(one.expected(), record.output)
        assert record.output.requires_grad


# -- execution ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["lcnet", "lcnet(bits=True, block=2)"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(2))
def test_executions_agree_and_keep_the_order_of_rows(name: str, spec: str, seed: int) -> None:
    one, dyn = source(name), dynamic(name, spec)
    with torch.no_grad():
        route = dyn.run(*one.args, policy=dc.Sampled(seed, per_sample=True))[1]
        sparse, dense = (
            dyn.record(*one.args, policy=dc.Forced(route), execution=how).output
            for how in ("sparse", "dense")
        )
        assert relative(sparse, dense) <= TOLERANCE
        alone = [
            dyn.run(
                *(x[i : i + 1] for x in one.args),
                policy=dc.Forced({k: v[i : i + 1] for k, v in route.items()}),
            )[0]
            for i in range(6)
        ]
        assert relative(torch.cat(alone), sparse) <= TOLERANCE
        backwards = torch.arange(5, -1, -1)
        turned = dyn.run(
            *(x[backwards] for x in one.args), policy=dc.Forced({k: v[backwards] for k, v in route.items()})
        )[0]
        assert relative(sparse[backwards], turned) <= TOLERANCE
    assert relative(sparse[backwards], sparse) > 0.01


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("spec", ["lcnet", "lcnet(bits=True, block=2)"])
def test_batches_of_no_row_and_of_one(name: str, spec: str) -> None:
    one, dyn = source(name), dynamic(name, spec)
    policies = (dc.Full(), dc.Smallest(), dc.Sampled(0, per_sample=True), dc.Learned())
    with torch.no_grad():
        for policy, rows in itertools.product(policies, (0, 1)):
            output, route = dyn.run(*(x[:rows] for x in one.args), policy=policy)
            assert output.shape == (rows, *one.expected().shape[1:])
            assert {k: v.shape for k, v in route.items()} == {
                k: (rows, c.width) for k, c in dyn.choices.items()
            }
            assert dyn.macs(route).shape == (rows,)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("execution", ["sparse", "dense"])
def test_mixed_rows_under_autocast(name: str, execution: Any) -> None:
    """Where a norm or an embedding gives float32, what is added to it may be bfloat16."""
    one, gains = source(name), drawn(name)
    alone = [tuple(x[i : i + 1] for x in one.args) for i in range(6)]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        whole = one.module(*one.args)
        expected = [by_hand(net_of(name), inputs, row(gains, i)) for i, inputs in enumerate(alone)]
        policy = dc.Forced(layers(gains))
        actual = dynamic(name).record(*one.args, policy=policy, execution=execution).output
    assert actual.dtype is whole.dtype
    assert relative(torch.cat(expected), actual) <= 0.03


def test_rows_of_different_widths_skip_different_branches() -> None:
    """Rows part by width; of those that run together some leave out a branch."""
    dyn = source("cnn").dynamic(["dsnet(per=block, divisor=1, minimum=1, include=conv1)", LAYERS])
    widths = {"a": (3, 6, 9, 12), "b": (3, 5, 8, 10), "c": (2, 5, 7, 9)}
    assert {name: one.sizes for name, one in dyn.program.sized.items()} == {
        f"{name}.conv1.weight[0]": sizes for name, sizes in widths.items()
    }
    columns = {"a": [0, 0, 0, 2, 2, 3], "b": [1, 3, 3, 1, 0, 0], "c": [2, 2, 2, 2, 1, 2]}
    gains = drawn("cnn", seed=5)
    route = layers(gains) | {f"width.{name}": torch.eye(4)[at] for name, at in columns.items()}
    outputs: list[Tensor] = []
    with torch.no_grad():
        for i, image in enumerate(source("cnn").args[0].split(1)):
            cut: dict[str, Any] = {}
            sizes = [widths[name][columns[name][i]] for name in "abc"]
            for name, size in zip("abc", sizes, strict=True):
                kept = range(size)
                cut |= {f"{name}.conv1.": (kept,), f"{name}.norm1.": (kept,)}
                cut |= {f"{name}.conv2.weight": (None, kept)}
            net = narrowed(gating_nets.Cnn(*sizes), state_of(net_of("cnn")), cut).eval()
            outputs.append(by_hand(net, (image,), row(gains, i)))
            one = {key: rows[i : i + 1] for key, rows in route.items()}
            counted = count_macs(lambda net=net, image=image, i=i: by_hand(net, (image,), row(gains, i)))
            assert dyn.macs(one).tolist() == [counted]
        for execution in ("sparse", "dense"):
            policy = dc.Forced(route)
            actual = dyn.record(*source("cnn").args, policy=policy, execution=execution).output
            assert relative(torch.cat(outputs), actual) <= TOLERANCE, execution
    assert count_macs(lambda: dyn.run(*source("cnn").args, policy=dc.Forced(route))) == float(
        dyn.macs(route).sum()
    )


def test_what_ran_in_inference_mode_can_be_trained_afterwards() -> None:
    """Indices are worked out once and kept; sizes are such that no other test has asked for them."""
    torch.manual_seed(6)
    net, x = gating_nets.SequenceFirst((23, 29)).eval(), torch.randn(6, 5, 6)
    dyn = Subject(net, (x,), {}).dynamic("lcnet(block=3)")
    with torch.inference_mode():
        route = dyn.run(x, policy=dc.Sampled(0, per_sample=True))[1]
    route = {name: rows.clone() for name, rows in route.items()}
    for execution in ("sparse", "dense"):
        dyn.zero_grad()
        dyn.record(x, policy=dc.Forced(route), execution=execution).output.square().sum().backward()
        used = [p.grad for name, p in dyn.named_parameters() if not name.startswith("dyn.")]
        assert all(grad is not None and bool(grad.isfinite().all()) for grad in used), execution


def test_a_choice_that_nobody_asks_is_recorded_all_the_same() -> None:
    """The inner branch of rows that all skip the outer one."""
    dyn = dynamic("nested")
    with torch.no_grad():
        route = dyn.run(*source("nested").args, policy=dc.Forced(layers({"model": [0.0]})))[1]
    assert {name: rows.shape for name, rows in route.items()} == dict.fromkeys(dyn.choices, (6, 1))


# -- what is refused ---------------------------------------------------------------------------------


class Refusing(nn.Module):
    """A hidden layer that is normalized, a branch that broadcasts, one whose middle is read elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.up, self.norm, self.down = nn.Linear(8, 10), nn.LayerNorm(10), nn.Linear(10, 8)
        self.token, self.read, self.write = nn.Linear(8, 8), nn.Linear(8, 9), nn.Linear(9, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).relu()
        y = y + self.down(self.norm(self.up(y)).relu())
        y = y.mean(1, keepdim=True) + self.token(y)
        added = self.write(self.read(y).relu())
        return self.head(y + added) + self.head(added)


def refusing() -> tuple[nn.Module, Tensor]:
    return Refusing(), torch.randn(2, 4, 6)


def _reasons(dyn: dc.DynamicModel, at: int = 0) -> dict[str, str]:
    return {rejection.name: rejection.reason for rejection in dyn.plans[at].rejections}


def test_a_normalized_hidden_layer_is_no_channel_choice() -> None:
    dyn = subject(refusing).dynamic("lcnet")
    reasons = _reasons(dyn)
    assert reasons["up.weight[0]"] == "layer norm runs over it: without one position the others change"
    assert "channels.up" not in dyn.choices
    assert "channels.read" in dyn.choices
    rejection = next(one for one in dyn.plans[0].rejections if one.name == "up.weight[0]")
    assert "self.norm(self.up(y))" in rejection.line


def test_sums_that_are_no_branches_say_why() -> None:
    (plan,) = subject(refusing).dynamic(LAYERS).plans
    reasons = [rejection.reason for rejection in plan.rejections]
    assert [choice.name for choice in plan.choices] == ["layer.model"]
    assert any("which would remain, is float32" in one and "but the sum is" in one for one in reasons)
    assert any("what it adds is needed elsewhere" in one for one in reasons)
    assert all("forward" in one.line or "y" in one.line for one in plan.rejections)


class Elsewhere(nn.Module):
    """What is added, [B, C], meets rows that lie in another axis, [N, B, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.head = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).relu()
        y = (y + self.one(y)).transpose(0, 1)
        y = y + self.two(y.mean(0))
        return self.head(y.relu().transpose(0, 1))


def elsewhere() -> tuple[nn.Module, Tensor]:
    return Elsewhere(), torch.randn(3, 4, 8)


def test_a_branch_whose_rows_lie_elsewhere_is_no_choice() -> None:
    dyn = subject(elsewhere).dynamic(LAYERS)
    assert list(dyn.choices) == ["layer.one"]
    assert "has no samples along the axis that the sum has them in" in _reasons(dyn)["two"]


def test_a_network_without_branches_has_nothing_to_skip() -> None:
    with pytest.raises(dc.NoSiteError, match="layers: the network has no residual branch"):
        subject(handmade.plain_cnn).dynamic(LAYERS)


def test_a_stream_is_not_gated() -> None:
    reasons = _reasons(dynamic("cnn", "lcnet"))
    stream = "it runs through a residual stream: branches outside use it"
    assert (reasons["conv.weight[0]"], reasons["b.conv2.weight[0]"]) == (stream, stream)
    assert _reasons(dynamic("sequence first", "lcnet"))["stem.0.weight[0]"] == (
        "it is used before a decision net could read anything"
    )


@pytest.mark.parametrize(("block", "left"), [(9, {"a", "b"}), (10, {"a"}), (11, {"a"})])
def test_a_block_as_large_as_a_dim_leaves_nothing_to_choose(block: int, left: set[str]) -> None:
    dyn = dynamic("cnn", f"lcnet(layers=False, block={block})")
    assert set(dyn.choices) == {f"channels.{name}.conv1" for name in left}
    assert _reasons(dyn)["c.conv1.weight[0]"] == "9 positions are one block: nothing to choose"
    with pytest.raises(dc.NoSiteError, match="12 positions are one block: nothing to choose"):
        source("cnn").dynamic("lcnet(layers=False, block=12)")


def test_a_second_application_does_not_decide_again() -> None:
    with pytest.raises(dc.NoSiteError, match=r"choice 'layer\.a' decides on it already"):
        source("cnn").dynamic([LAYERS, "lcnet(channels=False, name=again)"])
    with pytest.raises(dc.NoSiteError, match=r"choice 'channels\.a\.conv1' picks its positions already"):
        source("cnn").dynamic(["lcnet(layers=False)", "lcnet(layers=False, name=again)"])
    with pytest.raises(dc.SpecError, match=r"there is a choice named 'layer\.a' already"):
        source("cnn").dynamic(["dsnet(gate=False, divisor=1, minimum=1, name='layer.a')", LAYERS])


def test_a_second_application_takes_what_is_left() -> None:
    dyn = source("cnn").dynamic(["lcnet(include='^a')", "lcnet(bits=True, exclude='^b', name=rest)"])
    assert list(dyn.choices) == ["layer.a", "channels.a.conv1", "rest.layer.c", "rest.channels.c.conv1"]
    reasons = _reasons(dyn, 1)
    assert reasons["a"] == "choice 'layer.a' decides on it already"
    assert reasons["a.conv1.weight[0]"] == "choice 'channels.a.conv1' picks its positions already"
    assert reasons["b"] == reasons["b.conv1.weight[0]"] == "excluded by '^b'"
    assert _reasons(dyn)["b"] == "not included by '^a'"
    gains = {"layer.a": torch.tensor([[0.5]]), "rest.layer.c": torch.tensor([[0.0]])}
    with torch.no_grad():
        expected = by_hand(net_of("cnn"), source("cnn").args, {"a": 0.5, "c": 0.0})
        assert relative(expected, dyn.run(*source("cnn").args, policy=dc.Forced(gains))[0]) <= TOLERANCE


def test_what_another_method_decides_is_left_to_it() -> None:
    dyn = source("cnn").dynamic(["dsnet(gate=False, divisor=1, minimum=1, include='a.conv1')", "lcnet"])
    assert _reasons(dyn, 1)["a.conv1.weight[0]"] == "choice 'width' sizes it already"
    assert "layer.a" in dyn.choices


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("layers=False, channels=False", "has nothing to do"),
        ("hidden=-1", "hidden is at least 0"),
        ("block=0", "block and grid at least 1"),
        ("grid=0", "block and grid at least 1"),
        ("confidence=0.5", r"confidence lies in \(0.5, 1\)"),
        ("confidence=1.0", r"confidence lies in \(0.5, 1\)"),
        ("include='('", "is not a regular expression"),
        ("exclude='['", "is not a regular expression"),
        ("blocks=2", "lcnet has no field 'blocks'; did you mean 'block'"),
    ],
)
def test_bad_settings(fields: str, message: str) -> None:
    with pytest.raises(dc.SpecError, match=message):
        parse_spec(f"lcnet({fields})")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.tensor([[-0.5]]), r"outside its domain \(gains\)"),
        (torch.tensor([[float("nan")]]), r"outside its domain \(gains\)"),
        (torch.ones(1, 2), r"takes rows \[B, 1\]"),
        (torch.ones(4, 1), "has 4 rows for choice 'layer.a', the batch has 6"),
    ],
)
def test_routes_that_do_not_fit(rows: Tensor, message: str) -> None:
    with pytest.raises(dc.RouteError, match=message):
        dynamic("cnn").run(*source("cnn").args, policy=dc.Forced({"layer.a": rows}))


def test_bits_are_not_scaled() -> None:
    dyn = dynamic("cnn", "lcnet(bits=True)")
    with pytest.raises(dc.RouteError, match=r"outside its domain \(bits\)"):
        dyn.run(*source("cnn").args, policy=dc.Forced({"layer.a": torch.tensor([[0.5]])}))


# -- planning ----------------------------------------------------------------------------------------

SPECS = (
    "lcnet",
    "lcnet(channels=False)",
    "lcnet(layers=False, block=4, grid=2)",
    "lcnet(block=2, bits=True, hidden=8, confidence=0.75)",
    r"lcnet(include='blocks\\.\\d+', exclude='it\'s [a-z]', name='second')",
)


@pytest.mark.parametrize("text", SPECS)
def test_specs_parse_back(text: str) -> None:
    one = parse_spec(text)
    assert spec_of(one) == text.replace(r"'it\'s [a-z]'", '"it\'s [a-z]"')
    assert parse_spec(spec_of(one)) == one


@pytest.mark.parametrize("text", SPECS[:4])
def test_planning_reads_only(text: str) -> None:
    one = source("pre-norm")
    gating, before = parse_spec(text), one.program.fingerprint
    facts, state = analyze(one.program), snapshot(one.module)
    plans = [gating.plan(one.program, facts) for _ in range(2)]
    assert (plans[0], plans[0]) == (plans[1], dynamic("pre-norm", text).plans[0])
    assert one.program.fingerprint == before
    assert same(state, snapshot(one.module))


def test_sites_say_what_is_decided() -> None:
    (plan,) = dynamic("cnn", "lcnet(block=4)").plans
    assert [(site.name, site.choice) for site in plan.sites[:3]] == [(n, f"layer.{n}") for n in "abc"]
    assert {site.name: site.what for site in plan.sites[3:]} == {
        "a.conv1.weight[0]": "12 positions, 3 gains",
        "b.conv1.weight[0]": "10 positions, 3 gains",
        "c.conv1.weight[0]": "9 positions, 3 gains",
    }
