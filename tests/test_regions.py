"""Residual branches, refusals, trunk and stages: counts of known architectures, small nets for every rule.

What a branch promises is checked by leaving it out: the graph still runs and gives the same shapes.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Collection
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

from dyncompile import zoo
from dyncompile.analysis.flow import Flow, Target
from dyncompile.analysis.ordinals import numbered
from dyncompile.analysis.regions import Branch, Regions, find_regions
from dyncompile.analysis.stages import find_stages
from dyncompile.torchlib import by_name
from tests.nets import Net, cnns, transformer_nets
from tests.region_nets import (
    ACCEPTED,
    REFUSED,
    CrossAttention,
    Made,
    MaskedMean,
    Residual,
    block,
    conv,
    exported,
    made,
)

aten = torch.ops.aten


def positions(graph: fx.Graph) -> dict[str, int]:
    """Sizes that are neither batch nor channels; two that are equal are taken for height and width."""
    found: dict[str, int] = {}
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.ndim in (1, 2, 3, 4):
            sizes = [size for size in value.shape[1:] if isinstance(size, int)]
            channels_last = len(sizes) == 2 or (len(sizes) == 3 and sizes[0] == sizes[1] != sizes[2])
            found[node.name] = prod(sizes[:-1] if channels_last else sizes[1:])
    return found


def regions_of(graph: fx.Graph, decisions: Collection[Target] = ()) -> Regions:
    return find_regions(graph, Flow.of(graph, decisions), numbered(graph))


def stages(graph: fx.Graph, regions: Regions, resolution: dict[str, int]) -> dict[str, int]:
    return find_stages(graph, Flow.of(graph), regions, resolution)


def stage_count(graph: fx.Graph) -> int:
    return max(stages(graph, regions_of(graph), positions(graph)).values()) + 1


# --- Third-party models ---

SMALL = "num_hidden_layers=2&hidden_size=32&num_attention_heads=4&intermediate_size=64&vocab_size=100"
HF = {
    f"hf:BertModel?{SMALL}": 4,  # attention and feed-forward, of two layers
    f"hf:LlamaForCausalLM?{SMALL}&num_key_value_heads=2": 4,
    "hf:GPT2LMHeadModel?n_layer=2&n_embd=32&n_head=4&vocab_size=100&bos_token_id=0&eos_token_id=0": 4,
    # The encoder's 2 x 2, and the decoder's 2 x 3 with cross attention.
    "hf:T5ForConditionalGeneration?num_layers=2&d_model=32&d_kv=8&d_ff=64&num_heads=4&vocab_size=100": 10,
    # Attention and feed-forward side by side, summed before they join the stream: one branch a layer.
    "hf:GPTJForCausalLM?n_layer=2&n_embd=32&n_head=4&vocab_size=100&rotary_dim=4": 2,
}
VISION = {
    "torchvision:resnet18": (8, 4),
    "torchvision:resnet50": (16, 4),
    "torchvision:mobilenet_v2": (10, 4),  # 17 blocks, 10 of stride 1 and equal width
    # 15 blocks; of stride 1 and equal width: 16, 24, twice 40, thrice 80, 112, twice 160. The first of these
    # works at 112 x 112, so that there are five resolutions with branches.
    "torchvision:mobilenet_v3_large": (10, 5),
    # 1, 2, 2, 3, 3, 4, 1 blocks, of which each first one changes its width.
    "torchvision:efficientnet_b0": (9, 4),
    "torchvision:convnext_tiny": (18, 4),
    "torchvision:vit_b_16?image_size=32": (24, 1),
    "torchvision:swin_t": (24, 4),
    "timm:vit_tiny_patch16_224": (24, 1),
    "timm:regnetx_002": (13, 4),
}


def third_party_graph(spec: str, training: bool, dynamic: bool = True) -> fx.Graph:
    # Weights without values: nothing here runs.
    with torch.device("meta"):
        source = zoo.load(spec)
    return exported(source.model, source.args, source.kwargs, training, dynamic).graph


def outline(regions: Regions) -> tuple[list[str], list[str]]:
    return [branch.name for branch in regions.branches], [refusal.name for refusal in regions.refusals]


@pytest.mark.parametrize("spec", VISION, ids=lambda spec: spec.partition("?")[0])
def test_vision_models(spec: str) -> None:
    # A static batch halves the time; `make zoo` has it dynamic, in both modes.
    graph = third_party_graph(spec, training=True, dynamic=False)
    regions = regions_of(graph)
    assert (len(regions.branches), stage_count(graph)) == VISION[spec]
    assert regions.refusals == ()
    assert len({branch.name for branch in regions.branches}) == len(regions.branches)


@pytest.mark.parametrize("spec", HF, ids=lambda spec: spec.partition("?")[0])
def test_transformers(spec: str) -> None:
    graph = third_party_graph(spec, training=False)
    regions = regions_of(graph)
    assert len(regions.branches) == HF[spec]
    assert len(regions.refusals) == (2 if "GPTJ" in spec else 0)
    assert stage_count(graph) == 1


ALL = [*VISION, *HF]


@pytest.mark.parametrize(
    "spec", [pytest.param(spec, marks=() if "Bert" in spec else pytest.mark.zoo) for spec in ALL]
)
def test_both_modes(spec: str) -> None:
    both = [regions_of(third_party_graph(spec, training)) for training in (False, True)]
    assert outline(both[0]) == outline(both[1])


@pytest.mark.zoo
def test_zoo_of_refusals() -> None:
    """HRNet: 1 bottleneck, 18 basic blocks in its branches, 4 in its head; no fusion is a branch."""
    regions = regions_of(third_party_graph("timm:hrnet_w18_small", training=False))
    assert len(regions.branches) == 23
    assert len(regions.refusals) == 23
    assert stage_count(third_party_graph("torchvision:densenet121", training=False)) == 4


# --- Small nets ---


def skipped(module: fx.GraphModule, branch: Branch) -> fx.GraphModule:
    """`module` without one branch. Erasing fails if anything outside uses a node of the body."""
    copies: dict[fx.Node, fx.Node] = {}
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, copies))
    graph.set_codegen(module.graph._codegen)
    nodes = {node.name: copies[node] for node in module.graph.nodes if node in copies}
    exit, output = nodes[branch.exit], nodes[branch.output]
    (kept,) = (operand for operand in exit.args[:2] if operand is not output)
    assert isinstance(kept, fx.Node)
    assert kept in [nodes[name] for name in (*branch.shortcut, branch.entry)]
    assert bool(branch.shortcut) == (kept is not nodes[branch.entry])
    exit.replace_all_uses_with(kept)
    graph.erase_node(exit)
    for name in reversed(branch.body):
        graph.erase_node(nodes[name])
    graph.lint()
    return fx.GraphModule(module, graph)


def check_branches(module: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    regions = regions_of(module.graph)
    with torch.no_grad():
        expected = module(*args, **kwargs)
        for branch in regions.branches:
            assert {branch.entry, branch.exit}.isdisjoint({*branch.body, *branch.shortcut})
            assert set(branch.body).isdisjoint(branch.shortcut)
            assert branch.output in branch.body
            result = skipped(module, branch)(*args, **kwargs)
            assert (result.shape, result.dtype) == (expected.shape, expected.dtype)


both_modes = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])


@both_modes
@pytest.mark.parametrize("name", ACCEPTED)
def test_branches_of_small_nets(name: str, training: bool) -> None:
    run, parts, expected = ACCEPTED[name]
    module = made(run, parts, training)
    regions = regions_of(module.graph)
    assert [branch.name + "+" * bool(branch.shortcut) for branch in regions.branches] == expected
    assert len(regions.refusals) == (name in ("parallel, summed", "windows"))
    check_branches(module, (torch.randn(3, 4, 8, 8),), {})


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    run, parts, reason = REFUSED[name]
    regions = regions_of(made(run, parts, training=True).graph)
    assert regions.branches == ()
    assert re.search(reason, regions.refusals[0].reason)
    assert "region_nets.py" in (regions.refusals[0].line or "")


@settings(max_examples=4)
@given(st.one_of(cnns(), transformer_nets()), st.booleans())
def test_branches_of_random_nets(net: Net, training: bool) -> None:
    module = exported(net.module, net.args, net.kwargs, training)
    check_branches(module, *net.inputs(3))


@both_modes
@pytest.mark.parametrize("index", [0, 1])
def test_a_skipped_branch_equals_the_network_without_it(index: int, training: bool) -> None:
    net, x = Residual(), torch.randn(3, 4, 8, 8)
    module = exported(net, (torch.randn(2, 4, 8, 8),), {}, training)
    result = skipped(module, regions_of(module.graph).branches[index])(x)
    net.kept = (index != 0, index != 1)
    assert torch.equal(result, net.train(training)(x))


def test_side_effects_belong_to_the_branch() -> None:
    graph = exported(Residual(), (torch.randn(2, 4, 8, 8),), {}, training=True).graph
    counters = [node.name for node in graph.nodes if "num_batches_tracked" in str(node.args)]
    assert len(counters) == 6
    first, second = regions_of(graph).branches
    sides = first.body, first.shortcut, second.body
    assert [len(set(counters).intersection(side)) for side in sides] == [2, 1, 2]


def test_a_counter_of_the_whole_network_belongs_to_no_branch() -> None:
    graph = made(lambda m, x: m.runs.add_(1) * 0 + x + m.a(x) * m.scale, {"a": block()}, training=True).graph
    (branch,) = regions_of(graph).branches
    assert not {node.name for node in graph.nodes if "runs" in str(node.args)} & {*branch.body}


def test_a_write_into_a_slice_belongs_to_the_branch() -> None:
    run, parts, _ = ACCEPTED["windows"]
    graph = made(run, parts, training=False).graph
    (branch,) = regions_of(graph).branches
    written = [node.name for node in graph.nodes if node.name.startswith("copy_")]
    assert len(written) == 1
    assert {*written, "softmax", "linear", "linear_1", "linear_2", "linear_3"} <= set(branch.body)


def test_analysis_is_pure_and_repeatable() -> None:
    graph = exported(Residual(), (torch.randn(2, 4, 8, 8),), {}, training=True).graph
    before = str(graph)
    assert regions_of(graph) == regions_of(graph)
    assert str(graph) == before


def test_pooling_by_a_mask_does_not_hide_the_stream() -> None:
    words, mask = torch.randint(10, (3, 5)), torch.ones(3, 5, dtype=torch.long)
    graph = exported(MaskedMean(), (words, mask), {}, False).graph
    assert regions_of(graph).trunk == (
        *("words", "embedding", "linear", "add", "mul", "sum_1", "div", "linear_3"),
    )


def test_views_of_what_was_overwritten_stay_on_the_trunk() -> None:
    parts = {"a": nn.Linear(256, 3), "b": conv()}
    graph = made(lambda m, x: m.a(F.relu(m.b(x), inplace=True).flatten(1)), parts, training=False).graph
    assert regions_of(graph).trunk == ("x", "conv2d", "batch_norm", "relu_", "flatten", "linear")


def test_side_inputs_do_not_hide_the_stream() -> None:
    args = torch.randn(2, 5, 8), torch.zeros(2, 5, dtype=torch.bool), torch.randn(2, 6, 8)
    regions = regions_of(exported(CrossAttention(), args, {}, training=True).graph)
    names = [branch.name for branch in regions.branches]
    assert names[:2] == ["encoder.self_attn", "encoder"]
    assert names[2:5] == ["decoder.self_attn", "decoder.multihead_attn", "decoder"]
    assert len(names) == 8
    assert regions.refusals == ()
    # The decoder is the trunk; the encoder enters through the bodies of its branches.
    exits = [branch.exit for branch in regions.branches[2:]]
    assert [name for name in regions.trunk if name.startswith("add")] == exits
    assert regions.trunk[0] == "target"


# --- Decisions ---


def decide(*_features: Tensor) -> float:
    return 1.0


def gated(module: fx.GraphModule, features: str, target: str) -> fx.Graph:
    """The value of node `target`, scaled by a decision on node `features`."""
    graph = module.graph
    nodes = by_name(graph)
    with graph.inserting_after(nodes[max(features, target, key=list(nodes).index)]):
        decision = graph.call_function(decide, (nodes[features],))
    with graph.inserting_after(decision):
        scaled = graph.call_function(aten.mul.Tensor, (nodes[target], decision))
        scaled.meta = dict(nodes[target].meta)
    nodes[target].replace_all_uses_with(scaled, lambda user: user not in (scaled, decision))
    graph.lint()
    return graph


def test_decisions_carry_no_data() -> None:
    """A gate on a branch, as a pass inserts it, changes neither the branches nor the trunk.

    The decision itself is in no body: it is taken whether or not the branch runs.
    """
    module = exported(Residual(), (torch.randn(2, 4, 8, 8),), {}, training=False)
    before = regions_of(module.graph)
    last = before.branches[1]
    after = regions_of(gated(module, last.entry, last.output), {decide})
    assert after.trunk == before.trunk
    assert [branch.name for branch in after.branches] == [branch.name for branch in before.branches]
    assert set(after.branches[1].body) - set(last.body) == {"mul_tensor"}
    # A gate on the head that reads the stem is no way around the blocks.
    after = regions_of(gated(module, before.branches[0].entry, "mean"), {decide})
    assert [name for name in after.trunk if not name.startswith("mul")] == [*before.trunk]


def test_what_a_decision_reads_is_needed() -> None:
    """The gate of the head reads a value of the second body: only what follows that value can be skipped."""
    module = exported(Residual(), (torch.randn(2, 4, 8, 8),), {}, training=False)
    before = regions_of(module.graph).branches[1]
    inner = next(name for name in before.body if name.startswith("relu"))
    after = regions_of(gated(module, inner, "mean"), {decide}).branches[1]
    assert inner in before.body
    assert inner not in after.body
    assert set(after.body) < set(before.body)


# --- Stages ---


def test_a_region_belongs_to_the_stage_in_which_it_ends() -> None:
    two = nn.Sequential(conv(), Made(lambda m, x: x + m.a(x), a=block()), Residual())
    graph = exported(two, (torch.randn(2, 4, 8, 8),), {}, training=False).graph
    regions = regions_of(graph)
    stage = stages(graph, regions, positions(graph))
    assert [stage[branch.exit] for branch in regions.branches] == [0, 1, 1]
    assert {stage[name] for name in (*regions.branches[1].body, *regions.branches[1].shortcut)} == {1}
    assert stage[graph.output_node().name] == stage[regions.trunk[-1]] == 1
    assert stage[regions.trunk[0]] == stage[regions.trunk[1]] == 0


def test_stem_and_head_belong_to_the_first_and_last_stage() -> None:
    graph = exported(Residual(), (torch.randn(2, 4, 8, 8),), {}, training=False).graph
    # The stem works at 8 x 8, both blocks end at 4 x 4, the head is pooled.
    assert set(stages(graph, regions_of(graph), positions(graph)).values()) == {0}


def plain(*widths: int) -> nn.Sequential:
    parts = [part for width in widths for part in (nn.LazyConv2d(width, 3, padding=1), nn.MaxPool2d(2))]
    return nn.Sequential(*parts, nn.Flatten(), nn.LazyLinear(5))


def test_stages_without_branches_are_runs_of_one_resolution() -> None:
    net, images = plain(4, 4, 8), torch.randn(2, 3, 16, 16)
    net(images)
    graph = exported(net, (images,), {}, training=False).graph
    regions = regions_of(graph)
    assert regions.branches == ()
    stage = stages(graph, regions, positions(graph))
    convolutions = [node.name for node in graph.nodes if node.name.startswith("conv2d")]
    assert [stage[name] for name in convolutions] == [0, 1, 2]
    assert stage["linear"] == 2  # the head, though its last feature map was 2 x 2
    # A classifier's width taken for positions changes nothing, nor does a resolution that is missing.
    wrong = positions(graph) | {"linear": 5}
    del wrong["max_pool2d"]
    assert stages(graph, regions, wrong)["linear"] == 2


def test_a_graph_without_data_has_one_stage() -> None:
    graph = fx.Graph()
    graph.output((graph.call_function(operator.add, (1, 2)),))
    assert regions_of(graph) == Regions((), (), ())
    assert set(stages(graph, regions_of(graph), {}).values()) == {0}
