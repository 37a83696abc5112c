"""Decision nets: what they choose, how rows part and meet, what masks give, where gradients go."""

from __future__ import annotations

import copy
import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dyncompile as dc
from dyncompile.analysis.dims.algebra import BATCH
from dyncompile.runtime import sparse
from dyncompile.runtime.rows import join_rows, merge_outputs, select_rows
from dyncompile.zoo.randomization import randomize
from tests import handmade, oracles
from tests.oracles import narrowed, state_of
from tests.region_nets import MaskedMean
from tests.support import Make, Subject, columns, relative, same, subject

SPEC = "dsnet(per=block, hidden=6, divisor=1, minimum=1)"
INNER, SECOND, OUT = (3, 6, 9, 12), (4, 8, 12, 16), (5, 10, 15, 20)
"""Sizes of `oracles.Residual` by column; the stem runs before the first gate."""


@cache
def residual() -> Subject:
    torch.manual_seed(5)
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(6))
    return Subject(randomize(oracles.Residual()).eval(), (images,), {})


def stirred(dyn: dc.DynamicModel, seed: int = 0) -> dc.DynamicModel:
    """Decision nets with random weights whose choices differ between rows."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in dyn.named_parameters():
            if name.startswith("dyn.gates."):
                parameter.copy_(torch.randn(parameter.shape, generator=random))
        for choice in dyn.gated:  # in order: later features depend on earlier decisions
            logits = dyn.record(images(), policy=dc.Learned()).logits[choice]
            dyn.get_parameter(f"dyn.gates.{choice}.head.bias").sub_(logits.mean(0))
    return dyn


def images() -> Tensor:
    return residual().args[0]


def gate(tensors: dict[str, Tensor], choice: str, features: Tensor) -> Tensor:
    """Logits by hand: mean over positions, two linear layers."""
    w1, b1, w2, b2 = (
        tensors[f"dyn.gates.{choice}.{name}"]
        for name in ("reduce.weight", "reduce.bias", "head.weight", "head.bias")
    )
    return F.linear(F.relu(F.linear(features.mean((2, 3)), w1, b1)), w2, b2)


def by_hand(tensors: dict[str, Tensor], x: Tensor) -> tuple[Tensor, list[int]]:
    """One row through networks that are built for what its gates say."""

    def net(inner: int, second: int, out: int) -> Any:
        widths = (8, inner, second, out)
        return narrowed(oracles.Residual(*widths), tensors, oracles.Residual.cut(*widths)).eval()

    wide = net(12, 16, 20)
    stem = F.relu(wide.norm(wide.conv(x)))
    first = int(gate(tensors, "width.a", stem).argmax())
    inner = INNER[first]
    later = int(gate(tensors, "width.b", net(inner, 16, 20).a(stem)).argmax())
    return net(inner, SECOND[later], OUT[later])(x), [first, later]


def test_rows_run_as_networks_built_by_hand_for_what_their_gates_say() -> None:
    dyn = stirred(residual().dynamic(SPEC))
    assert list(dyn.choices) == list(dyn.gated) == ["width.a", "width.b"]
    tensors = state_of(dyn)
    with torch.no_grad():
        record = dyn.record(images(), policy=dc.Learned())
        expected = [by_hand(tensors, images()[i : i + 1]) for i in range(8)]
    assert list(zip(*columns(record.route).values(), strict=True)) == [tuple(c) for _, c in expected]
    assert len({tuple(c) for _, c in expected}) > 2, "take other random gates: these say the same of all rows"
    assert relative(torch.cat([y for y, _ in expected]), record.output) < 1e-5


def test_logits_are_those_of_the_rows_in_order() -> None:
    dyn = stirred(residual().dynamic(SPEC))
    with torch.no_grad():
        together = dyn.record(images(), policy=dc.Learned())
        alone = [dyn.record(images()[i : i + 1], policy=dc.Learned()) for i in range(8)]
    for name in dyn.gated:
        assert relative(torch.cat([r.logits[name] for r in alone]), together.logits[name]) < 1e-5
        assert together.logits[name].argmax(1).tolist() == together.route[name].argmax(1).tolist()


@pytest.mark.parametrize("mode", [False, True])
def test_masks_give_what_slices_give(mode: bool) -> None:
    # In training every column normalizes by its own rows and updates its own statistics, either way.
    dyn, other = (stirred(residual().dynamic(SPEC)).train(mode) for _ in range(2))
    with torch.no_grad():
        sliced = dyn.record(images(), policy=dc.Learned(), execution="sparse")
        masked = other.record(images(), policy=dc.Learned(), execution="dense")
    assert columns(sliced.route) == columns(masked.route)
    assert relative(sliced.output, masked.output) < 1e-5
    statistics = [n for n, b in dyn.named_buffers() if n.endswith(("running_mean", "running_var"))]
    ours, theirs = dict(dyn.named_buffers()), dict(other.named_buffers())
    for name in statistics:
        if not name.startswith(("norm.", "a.", "b.")) or mode is False:
            assert relative(ours[name], theirs[name]) < 1e-4, name


@pytest.mark.parametrize("make", [handmade.resnet, handmade.vit, handmade.bert_like, handmade.decoder])
@pytest.mark.parametrize("per", ["model", "stage", "block"])
def test_untrained_decision_nets_reproduce_the_source(make: Make, per: str) -> None:
    one = subject(make)
    dyn = one.dynamic(f"dsnet(per={per}, divisor=1, minimum=1)")
    with torch.no_grad():
        output = dyn(*one.args, **one.kwargs)
    assert same(one.expected(), output)


def test_confidence_is_the_probability_of_full_width() -> None:
    dyn = residual().dynamic(SPEC, confidence=0.75)
    with torch.no_grad():
        logits = dyn.record(images(), policy=dc.Learned()).logits
    for found in logits.values():
        assert torch.allclose(found.softmax(1)[:, -1], torch.tensor(0.75))


def test_decision_nets_are_counted() -> None:
    dyn = residual().dynamic(SPEC)
    assert dyn.decision_macs == 2 * (8 * 6 + 6 * 4)
    assert dyn.static_macs == residual().dynamic("dsnet(gate=False)", minimum=1, divisor=1).static_macs


def test_a_grid_keeps_where_features_are() -> None:
    dyn = stirred(residual().dynamic("dsnet(per=block, grid=2, hidden=6, divisor=1, minimum=1)"))
    tensors = state_of(dyn)
    assert tensors["dyn.gates.width.a.reduce.weight"].shape == (6, 8 * 2 * 2)
    assert dyn.decision_macs == 2 * (32 * 6 + 6 * 4)
    net: Any = residual().module
    w1, b1, w2, b2 = (
        tensors[f"dyn.gates.width.a.{name}"]
        for name in ("reduce.weight", "reduce.bias", "head.weight", "head.bias")
    )
    with torch.no_grad():
        cells = F.adaptive_avg_pool2d(F.relu(net.norm(net.conv(images()))), 2).flatten(1)
        expected = F.linear(F.relu(F.linear(cells, w1, b1)), w2, b2)
        record = dyn.record(images(), policy=dc.Learned())
    assert relative(expected, record.logits["width.a"]) < 1e-5
    assert dc.verify(dyn, residual().module, images()).passed


def test_what_runs_before_the_first_gate_is_static_and_said_so() -> None:
    (plan,) = residual().dynamic(SPEC).plans
    (found,) = [r for r in plan.rejections if r.name == "conv.weight[0]"]
    assert "before a gate could decide" in found.reason


def test_start_passes_over_places() -> None:
    dyn = residual().dynamic("dsnet(start=1, divisor=1, minimum=1)")
    assert set(dyn.program.sized) == {"b.conv1.weight[0]", "b.conv2.weight[0]"}


def test_policies_that_read_no_logits_run_no_decision_net() -> None:
    dyn = residual().dynamic(SPEC)
    with torch.no_grad():
        for name, parameter in dyn.named_parameters():
            if name.startswith("dyn.gates."):
                parameter.fill_(float("nan"))
        record = dyn.record(images(), policy=dc.Full())
    assert same(residual().expected(), record.output)
    assert record.logits == {}


# -- how rows part and meet --------------------------------------------------------------------------


class Two(nn.Module):
    """Two bottlenecks on a stream: what the first chose is forgotten when the second starts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.up1, self.down1 = nn.Linear(8, 12), nn.Linear(12, 8)
        self.up2, self.down2 = nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x))
        y = y + self.down1(F.relu(self.up1(y)))
        y = y + self.down2(F.relu(self.up2(y)))
        return self.head(y)


@cache
def two() -> Subject:
    torch.manual_seed(1)
    return Subject(Two().eval(), (torch.randn(6, 6),), {})


def test_rows_meet_again_where_nothing_tells_them_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    dyn = two().dynamic("dsnet(per=block, include=up, divisor=1, minimum=1)")
    calls: list[tuple[str, list[int]]] = []
    real = sparse.SparseRun._advance  # pyright: ignore[reportPrivateUsage]

    def counted(self: Any, part: Any, segment: Any, ask: Any) -> Any:
        calls.append(("/".join(segment.choices), sorted(part.rows.tolist())))
        return real(self, part, segment, ask)

    monkeypatch.setattr(sparse.SparseRun, "_advance", counted)
    first, second = list(dyn.choices)
    route = {first: torch.eye(4)[[0, 1, 2, 3, 0, 1]], second: torch.eye(4)[[2, 2, 2, 2, 2, 3]]}
    with torch.no_grad():
        output = dyn.record(*two().args, policy=dc.Forced(route)).output
        alone = [
            dyn.record(
                two().args[0][i : i + 1], policy=dc.Forced({k: v[i : i + 1] for k, v in route.items()})
            )
            for i in range(6)
        ]
    assert ("", [0, 1, 2, 3, 4, 5]) in calls, "what precedes every decision runs once"
    assert [rows for name, rows in calls if name == first and len(rows) > 1] == [[0, 4], [1, 5]]
    assert (second, [0, 1, 2, 3, 4]) in calls
    assert relative(torch.cat([record.output for record in alone]), output) < 1e-5


def test_rows_stay_apart_while_their_widths_differ() -> None:
    # The stream of the second stage, as wide as its first block decided, enters the second block.
    one = subject(handmade.resnet)
    dyn = one.dynamic("dsnet(per=block, divisor=1, minimum=1)")
    *_, first, second = dyn.choices
    x = one.args[0].repeat(2, 1, 1, 1)[:4]
    route = {first: torch.eye(4)[[0, 3, 1, 0]], second: torch.eye(4)[[2, 2, 2, 3]]}
    with torch.no_grad():
        together = dyn.record(x, policy=dc.Forced(route)).output
        rows = [{name: one_hot[i : i + 1] for name, one_hot in route.items()} for i in range(4)]
        alone = [dyn.record(x[i : i + 1], policy=dc.Forced(row)).output for i, row in enumerate(rows)]
    assert relative(torch.cat(alone), together) < 1e-5


def test_gates_stand_in_networks_that_pool_by_a_mask() -> None:
    mask = (torch.arange(5) < torch.tensor([5, 3, 1, 4])[:, None]).long()
    words = torch.randint(10, (4, 5), generator=torch.Generator().manual_seed(0))
    net = randomize(MaskedMean()).eval()
    inputs = {"words": words, "mask": mask}
    dyn = dc.dynamize(net, "dsnet(hidden=6, divisor=1, minimum=1)", inputs).eval()
    assert dyn.decision_macs > 0
    assert dc.verify(dyn, net, inputs, routes=3).passed


def test_rows_of_values_that_hold_several_positions_per_row() -> None:
    windows = torch.arange(4 * 3 * 2).view(12, 2)  # 4 rows of 3 windows each, merged into one axis
    found = ((BATCH, 3), (2,))
    taken = select_rows(windows, found, torch.tensor([2, 0]), 4)
    assert taken.tolist() == [*windows[6:9].tolist(), *windows[:3].tolist()]
    parts = [select_rows(windows, found, torch.tensor(rows), 4) for rows in ([0, 1], [2, 3])]
    assert torch.equal(join_rows(parts, found), windows)
    assert select_rows(windows, ((12,), (2,)), torch.tensor([2]), 4) is windows


def test_rows_of_values_that_hold_positions_outermost() -> None:
    states = torch.arange(3 * 4 * 2).view(12, 2)  # 3 positions of 4 rows each, merged into one axis
    found = ((3, BATCH), (2,))
    taken = select_rows(states, found, torch.tensor([2, 0]), 4)
    assert torch.equal(taken, states.view(3, 4, 2)[:, [2, 0]].reshape(6, 2))
    parts = [select_rows(states, found, torch.tensor(rows), 4) for rows in ([2], [0, 3, 1])]
    rows = torch.tensor([2, 0, 3, 1])
    (merged,) = merge_outputs([[part] for part in parts], rows, [found])
    assert torch.equal(merged, states)
    assert torch.equal(join_rows(parts, found), states.view(3, 4, 2)[:, rows].reshape(12, 2))


def test_an_empty_batch_passes_all_decisions() -> None:
    dyn = stirred(residual().dynamic(SPEC))
    with torch.no_grad():
        record = dyn.record(images()[:0], policy=dc.Learned())
    assert record.output.shape == (0, 5)
    assert all(rows.shape == (0, 4) for rows in record.route.values())


# -- gradients ---------------------------------------------------------------------------------------


def test_the_gradient_of_a_decision_is_what_its_mask_lets_through() -> None:
    """Against finite differences of a network whose mask is a number: one hidden layer, one choice."""
    dyn = two().dynamic("dsnet(per=block, include=up1, hidden=3, divisor=1, minimum=1)").double()
    x = two().args[0].double()
    (choice,) = dyn.choices
    net: Any = copy.deepcopy(two().module).double()
    sizes = next(iter(dyn.program.sized.values())).sizes

    def loss(rows: Tensor) -> Tensor:
        keeps = torch.stack([(torch.arange(12) < n).double() for n in sizes])
        y = F.relu(net.stem(x))
        y = y + net.down1(F.relu(net.up1(y)) * (rows @ keeps))
        return net.head(y + net.down2(F.relu(net.up2(y)))).square().sum()

    rows = torch.eye(4, dtype=torch.float64)[[0, 1, 2, 3, 0, 1]].requires_grad_()
    (expected,) = torch.autograd.grad(loss(rows), rows)
    route = {choice: rows.detach().float().requires_grad_()}
    record = dyn.record(x, policy=dc.Forced(route), execution="dense")
    (actual,) = torch.autograd.grad(record.output.square().sum(), route[choice])
    assert relative(expected, actual) < 1e-5


def test_hard_decisions_have_soft_gradients() -> None:
    dyn = stirred(residual().dynamic(SPEC))
    record = dyn.record(images(), policy=dc.Learned(tau=2.0))
    for name, rows in record.route.items():
        assert ((rows == 0) | (rows == 1)).all()
        logits = record.logits[name]
        (actual,) = torch.autograd.grad(rows[:, 0].sum(), logits, retain_graph=True)
        soft = (logits.detach() / 2.0).requires_grad_()
        (expected,) = torch.autograd.grad(soft.softmax(1)[:, 0].sum(), soft)
        assert torch.allclose(actual, expected / 2.0)


def test_noise_is_gumbel_noise_and_only_there_on_request() -> None:
    dyn = residual().dynamic(SPEC)
    x = images().repeat(250, 1, 1, 1)
    torch.manual_seed(0)
    with torch.no_grad():
        quiet = dyn.record(x, policy=dc.Learned()).route["width.a"]
        noisy = dyn.record(x, policy=dc.Learned(noise=True)).route["width.a"]
    assert quiet[:, -1].all()
    assert math.isclose(float(noisy[:, -1].mean()), 0.9, abs_tol=0.03)


def test_masks_are_for_decision_nets_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    dyn = stirred(residual().dynamic(SPEC))
    seen: list[str] = []
    for name in ("_run_dense", "_run_sparse"):
        real = getattr(dyn, name)
        monkeypatch.setattr(dyn, name, lambda *a, n=name, r=real: (seen.append(n), r(*a))[1])
    dyn.record(images(), policy=dc.Learned())
    with torch.no_grad():
        dyn.record(images(), policy=dc.Learned())
    for name, parameter in dyn.named_parameters():
        parameter.requires_grad_(not name.startswith("dyn.gates."))
    dyn.record(images(), policy=dc.Learned())
    assert seen == ["_run_dense", "_run_sparse", "_run_sparse"]


def test_what_cannot_be_masked_says_so() -> None:
    one = subject(handmade.decoder)
    dyn = one.dynamic("dsnet(gate=False, embedding=True, divisor=1, minimum=1)")
    with pytest.raises(dc.RouteError, match="cannot be masked"):
        dyn.record(*one.args, **one.kwargs, policy=dc.Full(), execution="dense")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ("per=dim", "a gate per elastic dim is not offered"),
        ("start=-1", "start and hidden are at least 0"),
        ("grid=0", "grid at least 1"),
        ("confidence=1.0", "confidence lies in"),
    ],
)
def test_fields_that_make_no_sense(fields: str, reason: str) -> None:
    with pytest.raises(dc.SpecError, match=reason):
        residual().dynamic(f"dsnet({fields})")


class Heads(nn.Module):
    """torch's own attention, which puts positions before rows: [T x B, D]; then a weight from the left."""

    def __init__(self, *, padded: bool) -> None:
        super().__init__()
        self.padded = padded
        self.embed = nn.Embedding(8, 12)
        self.attention = nn.MultiheadAttention(12, 4, batch_first=True)
        self.left, self.right = nn.Parameter(torch.randn(10, 12)), nn.Parameter(torch.randn(5, 10))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        padding = tokens == 0 if self.padded else None
        x = x + self.attention(x, x, x, key_padding_mask=padding, need_weights=False)[0]
        hidden = torch.matmul(self.left, x.transpose(1, 2)).relu()
        return torch.matmul(self.right, hidden).mean(2)


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
def test_masks_find_rows_behind_positions_and_beside_weights(padded: bool) -> None:
    """Masked execution gives what every row gives alone, at its own heads and widths."""
    torch.manual_seed(0)
    net, tokens = Heads(padded=padded).eval(), torch.randint(0, 8, (4, 6))
    tokens[:, 0] = 1
    dyn = dc.dynamize(net, "dsnet(divisor=1, minimum=1, gate=False, per=dim)", tokens).eval()
    assert len(dyn.choices) >= 3
    route = {
        name: torch.eye(choice.width)[(torch.arange(4) + i) % choice.width]
        for i, (name, choice) in enumerate(dyn.choices.items())
    }
    masked = dyn.record(tokens, policy=dc.Forced(route), execution="dense").output
    for row in range(4):
        alone = {name: rows[row : row + 1] for name, rows in route.items()}
        assert relative(masked[row : row + 1], dc.specialize(dyn, alone)(tokens[row : row + 1])) < 1e-5
