"""`explain`: the right numbers and reasons, in few words, the same in every rendering."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

import dyncompile as dc
from dyncompile.exits import OFF
from dyncompile.report import Explanation, explain, to_text
from dyncompile.report.blocks import TIMES
from dyncompile.report.charts import Axis
from dyncompile.report.console import to_console
from dyncompile.report.diagram import draw
from dyncompile.report.evaluation import evaluate_policy
from dyncompile.report.folding import folded
from dyncompile.report.network import Block, Network, network_of
from dyncompile.report.patterns import fold, patterns
from dyncompile.report.results import priced
from dyncompile.report.samples import class_names, extremes
from dyncompile.report.sections import percent, quantity
from tests import handmade
from tests.test_exits import FIRST, LAYER, chain

SMALL = {"divisor": 2, "minimum": 2, "gate": False}


@pytest.fixture(scope="module")
def resnet() -> dc.DynamicModel:
    return made(handmade.resnet, per="stage")


@pytest.fixture(scope="module")
def found(resnet: dc.DynamicModel) -> Explanation:
    return explain(resnet)


def made(make: Callable[[], tuple[nn.Module, Any]], **config: Any) -> dc.DynamicModel:
    model, example = make()
    return dc.dynamize(model, "dsnet", example, **SMALL, **config)


# -- patterns ---------------------------------------------------------------------------------------


def test_patterns_fold_numbers_and_keep_the_rest_apart() -> None:
    names = [f"layer{a}.{b}.conv{c}" for a in (1, 2) for b in range(6) for c in (1, 2)]
    texts = [pattern.text for pattern in patterns([*names, "layer3.0.conv1", "fc.bias", "fc.bias"])]
    assert texts == ["layer{1,2}.{0..5}.conv{1,2}", "layer3.0.conv1", "fc.bias"]


def test_a_range_has_no_gap() -> None:
    assert [p.text for p in patterns(f"b.{i}" for i in (0, 2, 4, 6, 8))] == ["b.{0,2,4,6,8}"]


numbers = st.integers(0, 4)
names = st.lists(st.builds(lambda a, b, end: f"l{a}.m{b}.{end}", numbers, numbers, st.sampled_from("wb")))


@given(names)
def test_patterns_stand_for_exactly_their_names(names: list[str]) -> None:
    assert sorted(n for p in patterns(names) for n in p.names) == sorted(set(names))


def test_reasons_that_differ_in_numbers_are_one() -> None:
    assert fold(["64 positions", "128 positions"]) == "{64,128} positions"


# -- numbers ----------------------------------------------------------------------------------------


def test_quantities_and_shares() -> None:
    assert [quantity(n) for n in (0, 999, 1500, 1.814e9)] == ["0", "999", "1.5 k", "1.814 G"]
    assert [percent(s) for s in (0, 0.5, 0.9999, 1)] == ["0.0 %", "50.0 %", "> 99.9 %", "100 %"]


def test_source_numbers_are_the_models_own(resnet: dc.DynamicModel, found: Explanation) -> None:
    model, _ = handmade.resnet()
    assert found.source.parameters == sum(p.numel() for p in model.parameters())
    assert found.source.macs == resnet.static_macs
    assert found.source.branches == 4


def test_columns_cost_what_specialized_networks_have(resnet: dc.DynamicModel, found: Explanation) -> None:
    for choice in found.choices:
        for i, column in enumerate(choice.columns):
            route = resnet.route({choice.name: i})
            held = sum(p.numel() for p in dc.specialize(resnet, route).parameters())
            assert column.macs == pytest.approx(float(resnet.macs(route)[0]) / resnet.static_macs)
            assert column.parameters == pytest.approx(held / found.source.parameters)
        assert (choice.columns[-1].macs, choice.columns[-1].parameters) == (1, 1)


def test_smallest_is_all_choices_together(resnet: dc.DynamicModel, found: Explanation) -> None:
    cheapest = float(resnet.macs(resnet.route(0))[0]) / resnet.static_macs
    assert found.smallest_macs == pytest.approx(cheapest)
    assert found.smallest_macs < min(choice.columns[0].macs for choice in found.choices)


def test_every_site_and_rejection_of_the_plans_is_there(resnet: dc.DynamicModel, found: Explanation) -> None:
    planned = [site.name for plan in resnet.plans for site in plan.sites]
    assert sorted(name for group in found.sites for name in group.names) == sorted(planned)
    refused = {r.name for plan in resnet.plans for r in plan.rejections}
    assert {name for group in found.rejections for name in group.names} == refused
    assert sum(choice.sites for choice in found.choices) == len(planned)


def test_only_what_is_included_counts_as_controlled() -> None:
    some = explain(made(handmade.resnet, include=r"^stage1\.0")).coverage
    assert some.controlled_parameters < some.elastic_parameters
    assert 0 < some.controlled_macs < some.elastic_macs == 1


# -- reasons ----------------------------------------------------------------------------------------


def test_headless_model_says_why_its_stream_is_static() -> None:
    text = made(handmade.headless).explain()
    rejected = text.split("Rejected")[1].split("\n\n")[0]
    assert "it is part of the model's output" in rejected
    assert "stage2.{0,1}.conv2.1.weight" in rejected


def test_headless_model_without_a_norm_says_so_too() -> None:
    """No tensor is static as a whole here, so that no pass rejects one; the axis is named all the same."""
    model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Linear(16, 8, bias=False))
    found = explain(dc.dynamize(model, "dsnet", torch.randn(2, 8), **SMALL))
    (group,) = (g for g in found.static if g.reason == "it is part of the model's output")
    assert group.names == ("2.weight[0]",)


class _Mysterious(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.mid, self.down = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(handmade.mystery(self.mid(self.up(x).relu())))


def test_unknown_operator_is_named_with_its_line_and_what_froze() -> None:
    dyn = dc.dynamize(_Mysterious(), "dsnet", torch.randn(2, 8), **SMALL)
    (note,) = explain(dyn).unknown
    assert note.operator == "tests.mystery.default"
    assert "test_report.py" in note.line
    assert "handmade.mystery(" in note.line
    assert note.froze == ("mid.weight[0]", "mid.bias[0]")
    section = dyn.explain().split("Operators without a rule")[1]
    assert "tests.mystery.default" in section
    assert "mid.weight[0], mid.bias[0]" in section


# -- renderings -------------------------------------------------------------------------------------


def test_text_is_short_unless_asked(found: Explanation) -> None:
    brief, long = to_text(found), to_text(found, verbose=True)
    assert "stage1.{0,1}.conv1.0.weight[0]" in brief
    assert len(brief.splitlines()) < len(long.splitlines())
    assert "stage1.1.conv1.0.weight[0]" in long


def test_terminal_shows_what_the_text_shows(found: Explanation) -> None:
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(to_console(found, verbose=True))
    assert console.export_text().split() == to_text(found, verbose=True).split()


def test_explanation_is_data(found: Explanation) -> None:
    assert json.loads(json.dumps(asdict(found)))["passes"][0]["spec"].startswith("dsnet(")


def test_explaining_changes_nothing(resnet: dc.DynamicModel) -> None:
    before = resnet.program.fingerprint
    assert resnet.explain() == resnet.explain()
    assert resnet.program.fingerprint == before


# -- the network as blocks --------------------------------------------------------------------------


def network(make: Callable[[], tuple[nn.Module, Any]], method: Any, **config: Any) -> Network:
    model, example = make()
    return network_of(dc.dynamize(model, method, example, **config))


def test_blocks_cover_the_network(resnet: dc.DynamicModel) -> None:
    found = network_of(resnet)
    assert sum(block.macs for block in found.blocks) == pytest.approx(1)
    branches = [block.name for block in found.blocks if block.branch]
    assert branches == [branch.name for branch in resnet.facts.regions.branches]
    assert [b.name for b in found.blocks if not b.branch] == ["stem.0.0", "head.2"]
    assert found.blocks[0].stage == 0
    assert found.inputs == ((3, 8, 8),)


def test_decisions_stand_where_they_are_taken_and_reach_what_they_decide() -> None:
    model, example = handmade.resnet()
    dyn = dc.dynamize(model, ["lcnet(channels=False)", "dsnet(per=stage, divisor=2, minimum=2)"], example)
    found = network_of(dyn)
    names = [block.name for block in found.blocks]
    layers = [one for one in found.deciders if one.label.startswith("layer.")]
    assert [(names[one.after], dict(one.acts)) for one in layers] == [
        (name, {names.index(name): ("skip",)}) for name in names if found.blocks[names.index(name)].branch
    ]
    for one in found.deciders:
        assert one.asked
        assert min(one.acts) >= one.after
    widths = [one for one in found.deciders if one.label.startswith("width")]
    assert {how for one in widths for hows in one.acts.values() for how in hows} == {"width"}
    static = [i for i in range(len(names)) if all(i not in one.acts for one in found.deciders)]
    assert all(found.blocks[i].moved == 0 for i in static)
    assert [names[i] for i in static] == ["stem.0.0"]


@pytest.mark.parametrize(
    ("method", "after", "how"),
    [("basisnet(bases=2)", 0, "kernel"), ("resolution(sizes=(4, 8))", 0, "size"), ("exits", 1, "exit")],
)
def test_every_kind_of_decision_is_drawn(method: str, after: int, how: str) -> None:
    found = network(handmade.resnet, method)
    one = next(one for one in found.deciders if any(how in hows for hows in one.acts.values()))
    assert one.after >= after
    assert set(one.acts) <= set(range(one.after, len(found.blocks)))
    if how == "exit":  # nothing that comes before it is saved, all that comes after is
        assert set(one.acts) == set(range(one.after, len(found.blocks)))
    svg = draw(found)
    assert f"class='diamond asked {how}'" in svg
    assert ElementTree.fromstring(svg).tag == "svg"


class _Deep(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(count)
        )
        self.stem, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def test_what_repeats_is_drawn_once() -> None:
    dyn = dc.dynamize(_Deep(12), "lcnet(channels=False)", torch.randn(2, 4))
    whole = network_of(dyn)
    assert (len(whole.blocks), len(whole.deciders)) == (14, 12)
    assert folded(whole, most=14) is whole
    few = folded(whole, most=8)
    assert [(block.name, block.count) for block in few.blocks] == [
        ("stem", 1),
        ("blocks.{0..11}", 12),
        ("head", 1),
    ]
    (one,) = few.deciders
    assert (one.count, one.after, dict(one.acts)) == (12, 1, {1: ("skip",)})
    assert sum(block.macs for block in few.blocks) == pytest.approx(1)
    assert f"{TIMES}12" in draw(few)


def test_what_differs_stays_apart() -> None:
    dyn = dc.dynamize(_Deep(9), "lcnet(channels=False, exclude='4')", torch.randn(2, 4))
    few = folded(network_of(dyn), most=3)
    assert [block.name for block in few.blocks] == [
        "stem",
        "blocks.{0,1,2,3}",
        "blocks.4",
        "blocks.{5,6,7,8}",
        "head",
    ]
    assert [sorted(one.acts) for one in few.deciders] == [[1], [3]]


def test_networks_without_branches_are_blocks_of_modules() -> None:
    found = network(handmade.plain_cnn, "dsnet", **SMALL)
    assert not any(block.branch for block in found.blocks)
    assert sum(block.macs for block in found.blocks) == pytest.approx(1)
    assert not any(one.asked for one in found.deciders)
    assert "class='diamond told" in draw(found)


def test_long_names_are_cut_and_kept_for_who_points_at_them() -> None:
    name = "encoder.layers." + "very_long_name." * 12 + "0"
    block = Block(name, True, (), ("3 x 3 64",), (64, 8, 8), 0, 1.0, 0.0)
    svg = ElementTree.fromstring(draw(Network(((3, 8, 8),), (block,), ())))
    texts = ["".join(text.itertext()) for text in svg.iter("text")]
    assert max(map(len, texts)) <= 60
    assert any(name in (title.text or "") for title in svg.iter("title"))


# -- plots ------------------------------------------------------------------------------------------


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_ticks_are_few_round_numbers_on_the_axis(low: float, span: float) -> None:
    ticks = Axis("x", low, low + span).ticks
    assert 3 <= len(ticks) <= 8
    assert all(low - 1e-6 * span <= tick <= low + span * (1 + 1e-6) for tick in ticks)
    steps = [b - a for a, b in itertools.pairwise(ticks)]
    assert max(steps) - min(steps) <= 1e-6 * span
    digits = f"{steps[0]:.2e}"[:4]
    assert digits in ("1.00", "2.00", "2.50", "5.00")


def test_prices_move_what_is_spent_and_are_taken_back() -> None:
    model, example = handmade.resnet()
    dyn = dc.dynamize(model, "dsnet(divisor=2, minimum=2)", example).eval()
    before = {name: value.clone() for name, value in dyn.state_dict().items()}
    with torch.no_grad():
        whole = float(dyn.macs(dyn.run(example, policy=dc.Learned())[1]).mean())
        with priced(dyn, 1e3):
            cheap = float(dyn.macs(dyn.run(example, policy=dc.Learned())[1]).mean())
    assert cheap < whole
    assert all(torch.equal(before[name], value) for name, value in dyn.state_dict().items())


@pytest.mark.parametrize(
    ("leaving", "spent"), [((-1.0, -1.0), FIRST + 24), ((OFF, -1.0), FIRST + 2 * LAYER + 48)]
)
def test_who_leaves_early_pays_for_no_later_decision(leaving: tuple[float, float], spent: float) -> None:
    """Of two exits the first decides alone for who leaves there; its prediction is what it decided on."""
    _, dyn, x = chain()
    for name, threshold in zip(dyn.choices, leaving, strict=True):
        dyn.get_buffer(f"dyn.exits.{name}.threshold").fill_(threshold)
    data = TensorDataset(x, torch.zeros(6, dtype=torch.long))
    found = evaluate_policy(dyn, data, dc.Learned(), batch_size=4)
    assert found.samples == 6
    assert found.macs == pytest.approx(spent / dyn.static_macs)
    easy, hard = extremes(dyn, data, count=2)
    assert [one.share for one in (*easy, *hard)] == pytest.approx([spent / dyn.static_macs] * 4)


def test_classes_are_called_as_the_data_set_calls_them() -> None:
    data = TensorDataset(torch.zeros(4))
    assert class_names(data) == ()
    data.classes = ["circle", "cross"]  # pyright: ignore[reportAttributeAccessIssue]
    assert class_names(Subset(Subset(data, [1, 2]), [0])) == ("circle", "cross")


def test_an_axis_of_decades_has_powers_of_ten_for_ticks() -> None:
    axis = Axis("nodes", 50.0, 20_000.0, decades=True)
    assert axis.ticks == [100.0, 1000.0, 10_000.0]
    assert [axis.said(tick) for tick in axis.ticks] == ["100", "1,000", "10,000"]
    assert axis.at(1000.0) == pytest.approx((3 - 1.69897) / (4.30103 - 1.69897))
