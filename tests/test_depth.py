"""DS-Net++ drops blocks with width, and a gate's second head scales channels: against networks by hand."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dyncompile as dc
from dyncompile.pipeline import spec_of
from dyncompile.spec import parse_spec
from dyncompile.verify import count_macs
from tests import gating_nets as nets
from tests.gating_nets import Part, Residual, by_hand
from tests.nets import randomize
from tests.oracles import Cut, narrowed, state_of
from tests.support import Subject, relative, same, snapshot, undecided

TOLERANCE = 1e-5
DEPTH = "dsnet(ratios=(0.25, 0.5, 1), depth=(0, 0.5, 1), divisor=1, minimum=1, gate=False)"
GATED = "dsnet(ratios=(0.25, 0.5, 1), depth=(0.3, 0.6, 1), divisor=1, minimum=1, hidden=6)"
ALONE = "dsnet(ratios=(1, 1, 1), depth=(0.3, 0.6, 1), divisor=1, minimum=1, hidden=6)"
BLOCKS = ("one.0", "one.1", "one.2", "two.0", "two.1")


class Staged(Residual):
    """A stage of three blocks and, at half the resolution, one of two."""

    def __init__(self, stem: int = 8, inner: int = 12, second: int = 16, out: int = 20) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, stem, 3, padding=1), nn.BatchNorm2d(stem)
        self.one = nn.Sequential(*(nets.Block(stem, inner, stem, 1) for _ in range(3)))
        self.two = nn.Sequential(nets.Block(stem, second, out, 2), nets.Block(out, second, out, 1))
        self.head = nn.Linear(out, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.two(self.one(self.before(x))), x)

    def before(self, *inputs: Tensor) -> Tensor:
        return self.norm(self.conv(inputs[0])).relu()

    def parts(self, gains: Mapping[str, float], *inputs: Tensor) -> dict[str, Part]:
        blocks = dict(zip(BLOCKS, (*self.one, *self.two), strict=True))
        return {name: block.part() for name, block in blocks.items() if isinstance(block, nets.Block)}

    def behind(self, y: Tensor, stem: Tensor) -> Tensor:
        return self.head(y.mean((2, 3)))

    @staticmethod
    def cut(stem: int, inner: int, second: int, out: int) -> Cut:
        s, o = range(stem), range(out)
        cut: dict[str, Any] = {"conv.": (s,), "norm.": (s,), "head.weight": (None, o)}
        for name in BLOCKS:
            wide = (s, range(inner), s) if name < "two" else (o if name == "two.1" else s, range(second), o)
            cut |= {f"{name}.conv1.": (wide[1], wide[0]), f"{name}.norm1.": (wide[1],)}
            cut |= {f"{name}.conv2.weight": (wide[2], wide[1]), f"{name}.conv2.bias": (wide[2],)}
            cut |= {f"{name}.norm2.": (wide[2],)}
        return cut | {"two.0.down.0.": (o, s), "two.0.down.1.": (o,)}


@cache
def source() -> Subject:
    torch.manual_seed(21)
    with torch.no_grad():
        net = randomize(Staged()).eval()
    return Subject(net, (torch.randn(6, 3, 8, 8),), {})


@cache
def dynamic(spec: str) -> dc.DynamicModel:
    """Shared, in evaluation mode: nobody may change it."""
    return source().dynamic(spec)


def images() -> Tensor:
    return source().args[0]


def narrow(*widths: int, tensors: Mapping[str, Tensor] | None = None) -> Staged:
    return narrowed(Staged(*widths), tensors or state_of(source().module), Staged.cut(*widths)).eval()


def without(*dropped: str) -> dict[str, float]:
    return dict.fromkeys(dropped, 0.0)


UNGATED: Sequence[tuple[tuple[int, ...], dict[str, float]]] = (
    ((2, 3, 4, 5), without(*BLOCKS)),
    # Half of three is rounded to two, half of two is one; first blocks stay.
    ((4, 6, 8, 10), without("one.2", "two.1")),
    ((8, 12, 16, 20), {}),
)
"""Widths and dropped blocks by column, where everything moves."""
BEHIND_GATE: Sequence[tuple[tuple[int, ...], dict[str, float]]] = (
    ((8, 3, 4, 5), without("one.1", "one.2", "two.1")),
    ((8, 6, 8, 10), without("one.2", "two.1")),
    ((8, 12, 16, 20), {}),
)
"""The stem runs before the gate: it and the stream of the first stage are static."""
WHOLE: Sequence[tuple[tuple[int, ...], dict[str, float]]] = tuple(
    ((8, 12, 16, 20), dropped) for _, dropped in BEHIND_GATE
)
"""Blocks alone are dropped."""
TABLES = [(DEPTH, UNGATED), (GATED, BEHIND_GATE), (ALONE, WHOLE)]


# -- depth -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "table"), TABLES)
@pytest.mark.parametrize("column", range(3))
def test_a_column_is_the_narrow_network_without_these_blocks(
    spec: str, table: Sequence[tuple[tuple[int, ...], dict[str, float]]], column: int
) -> None:
    dyn, (widths, dropped) = dynamic(spec), table[column]
    net, route = narrow(*widths), dyn.route({"width": column})
    with torch.no_grad():
        expected = by_hand(net, (images(),), dropped)
        for execution in ("sparse", "dense"):
            actual = dyn.record(images(), policy=dc.Forced(route), execution=execution).output
            assert relative(expected, actual) <= TOLERANCE, execution
        static = dc.specialize(dyn, route)
        assert relative(expected, static(images())) <= TOLERANCE
    counted = count_macs(partial(by_hand, net, (images()[:1],), dropped))
    assert dyn.macs(route).tolist() == [counted] == [count_macs(partial(static, images()[:1]))]
    names = {name.rpartition(".")[0] for name in static.state_dict()}
    assert {block for block in BLOCKS if f"{block}.conv1" in names} == set(BLOCKS) - set(dropped)
    shapes = {name: tensor.shape for name, tensor in net.state_dict().items()}
    assert all(tensor.shape == shapes[name] for name, tensor in static.state_dict().items())


@pytest.mark.parametrize(("spec", "table"), TABLES)
def test_rows_of_different_depths_run_together(
    spec: str, table: Sequence[tuple[tuple[int, ...], dict[str, float]]]
) -> None:
    order = [1, 0, 2, 0, 1, 2]
    dyn, route = dynamic(spec), {"width": torch.eye(3)[order]}
    with torch.no_grad():
        expected = [
            by_hand(narrow(*table[column][0]), (images()[i : i + 1],), table[column][1])
            for i, column in enumerate(order)
        ]
        for execution in ("sparse", "dense"):
            actual = dyn.record(images(), policy=dc.Forced(route), execution=execution).output
            assert relative(torch.cat(expected), actual) <= TOLERANCE, execution
    counted = count_macs(partial(dyn.run, images(), policy=dc.Forced(route)))
    assert counted == float(dyn.macs(route).sum())


def test_stages_decide_on_their_own_depth() -> None:
    dyn = dynamic(DEPTH.replace("gate=False", "gate=False, per=stage"))
    assert list(dyn.choices) == ["width.stage0", "width.stage1"]
    for first, second in ((0, 1), (1, 0), (2, 0), (0, 2)):
        widths = (*UNGATED[first][0][:2], *UNGATED[second][0][2:])
        dropped = {name: 0.0 for name in UNGATED[first][1] if name.startswith("one")}
        dropped |= {name: 0.0 for name in UNGATED[second][1] if name.startswith("two")}
        net, route = narrow(*widths), dyn.route({"width.stage0": first, "width.stage1": second})
        with torch.no_grad():
            expected = by_hand(net, (images(),), dropped)
            assert relative(expected, dyn.run(images(), policy=dc.Forced(route))[0]) <= TOLERANCE
            assert relative(expected, dc.specialize(dyn, route)(images())) <= TOLERANCE
        counted = count_macs(partial(by_hand, net, (images()[:1],), dropped))
        assert dyn.macs(route).tolist() == [counted]


def test_sites_say_at_which_columns_a_block_is_kept() -> None:
    (plan,) = dynamic(DEPTH).plans
    assert {site.name: site.what for site in plan.sites if site.name in BLOCKS} == {
        "one.0": "kept at 1, 2",
        "one.1": "kept at 1, 2",
        "one.2": "kept at 2",
        "two.0": "kept at 1, 2",
        "two.1": "kept at 2",
    }
    assert {one.choice for one in plan.gained.values()} == {"width"}


def test_what_starts_before_the_gate_stays() -> None:
    dyn = source().dynamic(GATED.replace("depth=(0.3, 0.6, 1)", "depth=(0, 0, 1), start=1"))
    (plan,) = dyn.plans
    reasons = {rejection.name: rejection.reason for rejection in plan.rejections}
    assert reasons["one.0"] == "it starts before the gate decides"
    assert set(plan.gained) == set(BLOCKS[1:])
    with torch.no_grad():
        actual, _ = dyn.run(images(), policy=dc.Smallest())
        net = narrow(8, 12, 16, 5)
        assert relative(by_hand(net, (images(),), without(*BLOCKS[1:])), actual) <= TOLERANCE


def test_a_transformer_drops_its_last_branches() -> None:
    torch.manual_seed(22)
    with torch.no_grad():
        net = randomize(nets.PreNorm()).eval()
    assert isinstance(net, nets.PreNorm)
    one = Subject(net, (images(),), {})
    dyn = one.dynamic("dsnet(ratios=(0.5,), depth=(0.5, 1), divisor=1, minimum=1, gate=False, exclude=mlp)")
    heads = {name: sized.sizes for name, sized in dyn.program.sized.items()}
    assert heads == {"blocks.0.attn.qkv.weight[0].0": (2, 3), "blocks.1.attn.qkv.weight[0].0": (2, 4)}
    rows = [part * 12 + at for part in range(3) for at in range(8)]
    first: Cut = {"blocks.0.attn.qkv.": (rows,), "blocks.0.attn.proj.weight": (None, range(8))}
    small = nets.PreNorm((2, 4))
    dropped = without("blocks.1.attn", "blocks.1.mlp")
    with torch.no_grad():
        expected = by_hand(narrowed(small, state_of(net), first).eval(), one.args, dropped)
        actual, route = dyn.run(*one.args, policy=dc.Smallest())
        assert relative(expected, actual) <= TOLERANCE
    counted = count_macs(partial(by_hand, small, (images()[:1],), dropped))
    assert dyn.macs(route).tolist() == [counted] * 6


@pytest.mark.parametrize("spec", [DEPTH, GATED, GATED.replace("hidden", "attention=True, hidden")])
def test_untrained_it_is_the_source_bit_for_bit(spec: str) -> None:
    dyn, expected = dynamic(spec), source().expected()
    with torch.no_grad():
        for policy in (dc.Full(), dc.Learned()):
            assert same(expected, dyn.run(images(), policy=policy)[0])


def test_training_leaves_dropped_blocks_alone() -> None:
    """One column for all rows: private statistics of this width, none of what is dropped, no gradients."""
    dyn = copy.deepcopy(dynamic(DEPTH)).train()
    before, (widths, dropped) = snapshot(dyn), UNGATED[1]
    net = narrow(*widths).train()
    expected = by_hand(net, (images(),), dropped)
    actual, _ = dyn.run(images(), policy=dc.Forced(dyn.route(1)))
    assert relative(expected, actual) <= TOLERANCE
    actual.square().sum().backward()
    gone = tuple(f"{block}." for block in dropped)
    for name, parameter in dyn.named_parameters():
        assert (parameter.grad is None) == name.startswith(gone), name
    own = {name: tensor for name, tensor in dyn.named_buffers() if "num_batches" not in name}
    for name, tensor in own.items():
        private, _, of = name.partition("statistics.width.1.")
        moves = private == "dyn." and not of.startswith(gone)
        assert torch.equal(tensor, before[name]) != moves, name
        if moves:
            assert relative(dict(net.named_buffers())[of], tensor) <= TOLERANCE, name


@pytest.mark.parametrize("spec", [DEPTH, DEPTH.replace("gate=False", "gate=False, per=stage")])
def test_keeping_all_blocks_is_the_same_as_no_depth(spec: str) -> None:
    kept = source().dynamic(spec.replace("depth=(0, 0.5, 1)", "depth=(1, 1, 1)"))
    plain = source().dynamic(spec.replace("depth=(0, 0.5, 1), ", ""))
    assert kept.program.listing() == plain.program.listing()
    assert not kept.plans[0].gained


def test_blocks_alone_are_decided_per_stage_by_gates_of_their_own() -> None:
    dyn = source().dynamic(ALONE.replace("hidden=6", "hidden=6, per=stage"))
    assert list(dyn.choices) == ["width.stage0", "width.stage1"] == list(dyn.gated)
    assert dyn.choices["width.stage0"].labels == ("1@0.3", "1@0.6", "1@1")
    assert not dyn.program.sized
    route = dyn.route({"width.stage0": 0, "width.stage1": 1})
    with torch.no_grad():
        expected = by_hand(narrow(8, 12, 16, 20), (images(),), without("one.1", "one.2", "two.1"))
        assert relative(expected, dyn.run(images(), policy=dc.Forced(route))[0]) <= TOLERANCE
        assert relative(expected, dc.specialize(dyn, route)(images())) <= TOLERANCE
    assert dc.verify(dyn, source().module, images()).passed


def test_blocks_alone_need_blocks_that_can_be_dropped() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 5))
    with pytest.raises(dc.NoSiteError, match="every column keeps all of it"):
        dc.dynamize(net, ALONE, images())


@pytest.mark.parametrize("depth", ["(0.6, 0.3, 1)", "(1, 1, 1)", "(0.5, 0.5, 1)"])
def test_columns_of_blocks_alone_ascend(depth: str) -> None:
    with pytest.raises(dc.SpecError, match="of equal ratios the depths ascend"):
        parse_spec(f"dsnet(ratios=(1, 1, 1), depth={depth})")


def test_a_later_pass_does_not_decide_on_what_depth_drops() -> None:
    dyn = source().dynamic(["dsnet(ratios=(0.5,), depth=(0.6, 1), divisor=1, minimum=1)", "lcnet"])
    reasons = {rejection.name: rejection.reason for rejection in dyn.plans[1].rejections}
    for block in ("one.2", "two.1"):
        assert reasons[block] == "choice 'width' decides on it already"
    assert {"layer.one.0", "layer.one.1", "layer.two.0"} <= set(dyn.choices)


# -- settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("depth=(0.5, 1)", r"depth has a share in \[0, 1\] for each of 4 ratios and ends with 1"),
        ("ratios=(0.5,), depth=(0.5, 0.5)", "ends with 1, got"),
        ("ratios=(0.5,), depth=(1, 0.5)", "ends with 1, got"),
        ("ratios=(0.5,), depth=(-0.5, 1)", r"a share in \[0, 1\]"),
        ("ratios=(0.25, 0.5), depth=(0.5, 1.5, 1)", r"a share in \[0, 1\]"),
        ("ratios=(0.5,), depth=(0.5, 1), per=block", "depth is decided per model or stage, not per block"),
        (
            "ratios=(0.5,), depth=(0.5, 1), per=dim, gate=False",
            "depth is decided per model or stage, not per dim",
        ),
        ("attention=True, gate=False", "attention is a head of the gate: it needs gate=True"),
        ("preset=dsnett", "no preset is called 'dsnett'"),
        ("preset=dsnet, depth=(0.5, 1)", "for each of 14 ratios"),
    ],
)
def test_settings_that_make_no_sense(fields: str, message: str) -> None:
    with pytest.raises(dc.SpecError, match=message):
        parse_spec(f"dsnet({fields})")


def test_the_published_ratios_are_those_of_the_released_network() -> None:
    """Fourteen widths, from 35 % on in steps of 5 %."""
    preset: Any = parse_spec("dsnet(preset=dsnet)")
    assert preset.ratios == pytest.approx([0.35 + 0.05 * i for i in range(14)])
    assert preset.ratios[-1] == 1
    dyn = source().dynamic("dsnet(preset=dsnet, divisor=1, minimum=1)")
    assert dyn.choices["width"].width == 14
    (written,) = dyn.history
    assert parse_spec(written) == parse_spec("dsnet(preset=dsnet, divisor=1, minimum=1)")
    assert dyn.choices["width"].labels[:2] == ("0.35", "0.4")


@pytest.mark.parametrize("text", [DEPTH, GATED, "dsnet(ratios=(0.5,), depth=(0.0, 1.0), attention=True)"])
def test_specs_parse_back(text: str) -> None:
    one = parse_spec(text)
    assert parse_spec(spec_of(one)) == one


# -- the second head of a gate -----------------------------------------------------------------------

ATTENTION = "dsnet(ratios=(0.5,), divisor=1, minimum=1, hidden=6, attention=True)"


def test_attention_is_a_choice_that_is_one_at_both_ends() -> None:
    dyn = dynamic(ATTENTION)
    assert {name: choice.width for name, choice in dyn.choices.items()} == {
        "width": 2,
        "width.attention": 8,
    }
    choice = dyn.choices["width.attention"]
    assert choice.full == choice.smallest == (1.0,) * 8
    with torch.no_grad():
        for policy in (dc.Full(), dc.Smallest(), dc.Learned()):
            route = dyn.run(images(), policy=policy)[1]
            assert torch.equal(route["width.attention"], torch.ones(6, 8))


def test_both_heads_stand_on_one_hidden_layer() -> None:
    dyn = dynamic(ATTENTION)
    shapes = {name: tuple(p.shape) for name, p in dyn.named_parameters() if name.startswith("dyn.")}
    assert shapes == {
        "dyn.gates.width.reduce.weight": (6, 8),
        "dyn.gates.width.reduce.bias": (6,),
        "dyn.gates.width.head.weight": (2, 6),
        "dyn.gates.width.head.bias": (2,),
        "dyn.gates.width.attention.head.weight": (8, 6),
        "dyn.gates.width.attention.head.bias": (8,),
    }
    assert dyn.decision_macs == 8 * 6 + 6 * 2 + 6 * 8


def _after_the_gate(net: Staged, x: Tensor, gains: Tensor) -> Tensor:
    """The stem, its channels scaled for all that reads them, and the rest of the network."""
    y = stem = net.before(x) * gains[:, :, None, None]
    for part in net.parts({}, x).values():
        y = part(y, 1.0)
    return net.behind(y, stem)


@pytest.mark.parametrize("execution", ["sparse", "dense"])
def test_channels_read_after_the_gate_are_scaled(execution: Any) -> None:
    dyn = dynamic(ATTENTION)
    gains = torch.rand(6, 8, generator=torch.Generator().manual_seed(1)) * 1.5
    gains[0] = 0.0
    columns = [0, 1, 1, 0, 0, 1]
    route = {"width": torch.eye(2)[columns], "width.attention": gains}
    with torch.no_grad():
        rows = zip(images().split(1), gains.split(1), columns, strict=True)
        expected = torch.cat(
            [_after_the_gate(narrow(8, *((6, 8, 10), (12, 16, 20))[c]), x, g) for x, g, c in rows]
        )
        actual = dyn.record(images(), policy=dc.Forced(route), execution=execution).output
    assert relative(expected, actual) <= TOLERANCE
    assert relative(expected, dyn.run(images(), policy=dc.Forced({"width": route["width"]}))[0]) > 0.01


def test_a_specialized_network_holds_the_scales() -> None:
    dyn = dynamic(ATTENTION)
    gains = torch.rand(1, 8, generator=torch.Generator().manual_seed(2))
    route = {**dyn.route({"width": 0}), "width.attention": gains}
    static = dc.specialize(dyn, route)
    with torch.no_grad():
        expected = _after_the_gate(narrow(8, 6, 8, 10), images(), gains)
        assert relative(expected, static(images())) <= TOLERANCE
    assert count_macs(partial(static, images()[:1])) == float(dyn.macs(route)[0])


def test_attention_of_a_narrow_stream_scales_what_is_left_of_it() -> None:
    """Per block: the last gate reads a stream of which the block before has kept ten of twenty channels."""
    dyn = source().dynamic(ATTENTION.replace("hidden", "per=block, hidden"))
    gains = torch.rand(6, 20, generator=torch.Generator().manual_seed(4))
    route = {"width.two.0": torch.eye(2)[[0]], "width.two.1.attention": gains}
    narrow_stream = Staged(8, 12, 8, 10)
    narrow_stream.two[1] = nets.Block(10, 16, 10, 1)
    cut = {**Staged.cut(8, 12, 8, 10), "two.1.conv1.": (None, range(10)), "two.1.norm1.": ()}
    cut["two.1.conv2.weight"] = (range(10),)
    net = narrowed(narrow_stream, state_of(source().module), cut).eval()
    with torch.no_grad():
        y = net.before(images())
        for name, part in net.parts({}, images()).items():
            y = part(y * gains[:, :10, None, None] if name == "two.1" else y, 1.0)
        expected = net.behind(y, y)
        for execution in ("sparse", "dense"):
            actual = dyn.record(images(), policy=dc.Forced(route), execution=execution).output
            assert relative(expected, actual) <= TOLERANCE, execution
        one_row = {name: rows[:1] for name, rows in route.items()}
        assert relative(expected[:1], dc.specialize(dyn, one_row)(images()[:1])) <= TOLERANCE


def test_a_later_gate_scales_on_top_of_an_earlier_one() -> None:
    """The stream of the first stage is static; both stages' gates read it, at its two ends."""
    dyn = source().dynamic(ATTENTION.replace("hidden", "per=stage, hidden"))
    assert list(dyn.choices) == [
        "width.stage0",
        "width.stage1",
        "width.stage0.attention",
        "width.stage1.attention",
    ]
    random = torch.Generator().manual_seed(3)
    first, second = (torch.rand(6, 8, generator=random) for _ in range(2))
    route = {
        "width.stage0": torch.eye(2)[[0]],
        "width.stage1": torch.eye(2)[[1]],
        "width.stage0.attention": first,
        "width.stage1.attention": second,
    }
    net = narrow(8, 6, 16, 20)
    with torch.no_grad():
        y = net.before(images()) * first[:, :, None, None]
        for name, part in net.parts({}, images()).items():
            y = part(y * second[:, :, None, None] if name == "two.0" else y, 1.0)
        expected = net.behind(y, y)
        assert relative(expected, dyn.run(images(), policy=dc.Forced(route))[0]) <= TOLERANCE


def test_both_heads_decide_from_what_they_read() -> None:
    """Row by row, with the hidden layer and both heads worked out by hand."""
    dyn = undecided(dynamic(ATTENTION), (images(),))
    w = {name.removeprefix("dyn.gates.width."): p for name, p in dyn.named_parameters() if ".gates." in name}
    net, outputs = narrow(8, 12, 16, 20), list[Tensor]()
    with torch.no_grad():
        record = dyn.record(images(), policy=dc.Learned())
        pooled = net.before(images()).mean((2, 3))
        hidden = F.relu(F.linear(pooled, w["reduce.weight"], w["reduce.bias"]))
        columns = F.linear(hidden, w["head.weight"], w["head.bias"]).argmax(1)
        gains = F.linear(hidden, w["attention.head.weight"], w["attention.head.bias"]).clamp(0, 1)
        for i, column in enumerate(columns.tolist()):
            small = narrow(8, *((6, 8, 10), (12, 16, 20))[column])
            outputs.append(_after_the_gate(small, images()[i : i + 1], gains[i : i + 1]))
    assert record.route["width"].argmax(1).tolist() == columns.tolist()
    assert set(columns.tolist()) == {0, 1}
    assert torch.allclose(record.route["width.attention"], gains, atol=1e-5)
    assert ((gains > 0) & (gains < 1)).any()
    assert relative(torch.cat(outputs), record.output) <= TOLERANCE


def test_gradients_reach_both_heads_and_what_they_stand_on() -> None:
    dyn = undecided(dynamic(ATTENTION), (images(),)).train()
    dyn.record(images(), policy=dc.Learned()).output.square().sum().backward()
    gates = {name: p.grad for name, p in dyn.named_parameters() if name.startswith("dyn.gates.")}
    assert len(gates) == 6
    assert all(grad is not None and bool(grad.abs().sum() > 0) for grad in gates.values())
