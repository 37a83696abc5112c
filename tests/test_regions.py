"""Residual branches, refusals, trunk and stages: counts of known architectures, small nets for every rule, and
what a branch promises: without its body the graph still runs and gives the same shapes."""

from __future__ import annotations

import operator
import re
import warnings
from collections.abc import Callable, Iterable
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

from dyncompile import zoo
from dyncompile.analysis.regions import Branch, Regions, find_regions, stages
from tests.nets import Net, cnns, dynamic_batch, transformer_nets

aten = torch.ops.aten


def exported(
    module: nn.Module, args: Iterable[Any], kwargs: dict[str, Any], training: bool
) -> fx.GraphModule:
    args = tuple(args)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = dynamic_batch(module, args, kwargs)
        program = torch.export.export(
            module.train(training), args, kwargs, dynamic_shapes=shapes, strict=False
        )
        return program.module()  # pyright: ignore[reportReturnType]


def positions(graph: fx.Graph) -> dict[str, int]:
    """Sizes that are neither batch nor channels; of three sizes, the two that are equal are height and width."""
    found: dict[str, int] = {}
    for node in graph.nodes:
        value = node.meta.get("val")
        sizes = list(value.shape[1:]) if isinstance(value, Tensor) else [None]
        if all(isinstance(size, int) for size in sizes) and len(sizes) < 4:
            channels_last = len(sizes) == 2 or (len(sizes) == 3 and sizes[0] == sizes[1] != sizes[2])
            found[node.name] = prod(sizes[:-1] if channels_last else sizes[1:])
    return found


def stage_count(graph: fx.Graph) -> int:
    return max(stages(graph, find_regions(graph), positions(graph)).values()) + 1


# --- Third-party models -----------------------------------------------------------------------------------------

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
    # 15 blocks; stride 1 and equal width: 16-16, 24-24, twice 40-40, thrice 80-80, 112-112, twice 160-160. The first
    # of them works at 112 x 112, so that there are five resolutions with branches.
    "torchvision:mobilenet_v3_large": (10, 5),
    "torchvision:efficientnet_b0": (
        9,
        4,
    ),  # 1, 2, 2, 3, 3, 4, 1 blocks a stage, each first one changes its width
    "torchvision:convnext_tiny": (18, 4),
    "torchvision:vit_b_16?image_size=32": (24, 1),
    "torchvision:swin_t": (24, 4),
    "timm:vit_tiny_patch16_224": (24, 1),
    "timm:regnetx_002": (13, 4),
}


def third_party_graph(spec: str, training: bool) -> fx.Graph:
    # Weights without values: nothing here runs.
    with torch.device("meta"):
        source = zoo.load(spec)
    return exported(source.model, source.args, source.kwargs, training).graph


def outline(regions: Regions) -> tuple[list[str], list[str]]:
    return [branch.name for branch in regions.branches], [refusal.name for refusal in regions.refusals]


@pytest.mark.parametrize("spec", VISION, ids=lambda spec: spec.partition("?")[0])
def test_vision_models(spec: str) -> None:
    graph = third_party_graph(spec, training=True)
    regions = find_regions(graph)
    assert (len(regions.branches), stage_count(graph)) == VISION[spec]
    assert regions.refusals == ()
    assert len({branch.name for branch in regions.branches}) == len(regions.branches)


@pytest.mark.parametrize("spec", HF, ids=lambda spec: spec.partition("?")[0])
def test_transformers_in_both_modes(spec: str) -> None:
    both = [third_party_graph(spec, training) for training in (False, True)]
    regions = [find_regions(graph) for graph in both]
    assert outline(regions[0]) == outline(regions[1])
    assert len(regions[0].branches) == HF[spec]
    assert len(regions[0].refusals) == (2 if "GPTJ" in spec else 0)
    assert stage_count(both[0]) == 1


@pytest.mark.parametrize("spec", ["torchvision:resnet18", "timm:regnetx_002"])
def test_both_modes_of_a_cnn(spec: str) -> None:
    both = [find_regions(third_party_graph(spec, training)) for training in (False, True)]
    assert outline(both[0]) == outline(both[1])


@pytest.mark.zoo
@pytest.mark.parametrize("spec", VISION)
def test_both_modes_of_the_rest(spec: str) -> None:
    test_both_modes_of_a_cnn(spec)


@pytest.mark.zoo
def test_zoo_of_refusals() -> None:
    """HRNet: 1 bottleneck, 18 basic blocks in its branches, 4 in its head; no fusion is a branch."""
    regions = find_regions(third_party_graph("timm:hrnet_w18_small", training=False))
    assert len(regions.branches) == 23
    assert len(regions.refusals) == 23
    assert stage_count(third_party_graph("torchvision:densenet121", training=False)) == 4


# --- Small nets -------------------------------------------------------------------------------------------------

Run = Callable[[Any, Tensor], Any]


class Made(nn.Module):
    """A network from a function of itself and its input."""

    def __init__(self, run: Run, **parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)
        self.scale = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def conv(width: int = 4, out: int = 4, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(width, out, kernel, stride, kernel // 2, groups=groups)
    return nn.Sequential(convolution, nn.BatchNorm2d(out))


def block(width: int = 4, out: int = 4, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(conv(width, out, 3, stride), nn.ReLU(inplace=True), conv(out, out))


def drop_path(net: nn.Module, value: Tensor) -> Tensor:
    if not net.training:
        return value
    return value * value.new_empty(value.shape[0], 1, 1, 1).bernoulli_(0.8).div_(0.8)


def gate(net: Any, value: Tensor) -> Tensor:
    return value * torch.sigmoid(net.gate(value.mean((2, 3), keepdim=True)))


def shifted(net: Any, x: Tensor) -> Tensor:
    """Window attention in short: roll, views with the batch inside, and a bias written into a slice."""
    tokens = torch.roll(x, (1, 1), (2, 3)).view(-1, 4, 2, 32).permute(0, 2, 3, 1).reshape(-1, 32, 4)
    scores = net.query(tokens) @ net.key(tokens).transpose(-2, -1)
    scores[:, 1:] = scores[:, 1:] + net.bias(tokens).mean(-1, keepdim=True)[:, 1:]
    out = (scores.softmax(-1) @ net.value(tokens)).reshape(-1, 2, 32, 4).permute(0, 3, 1, 2).reshape(x.shape)
    return torch.roll(out, (-1, -1), (2, 3))


def linears(*names: str) -> dict[str, nn.Module]:
    return {name: nn.Linear(4, 4) for name in names}


def twice(net: Any, x: Tensor) -> Tensor:
    x = x + net.a(x)
    return x + net.a(x)


def parallel(net: Any, x: Tensor) -> Tensor:
    normed = net.norm(x)
    return x + net.a(normed) + net.b(normed)


def parallel_summed(net: Any, x: Tensor) -> Tensor:
    normed = net.norm(x)
    return x + (net.a(normed) + net.b(normed))


def preact_projection(net: Any, x: Tensor) -> Tensor:
    normed = F.relu(net.norm(x))
    return net.short(normed) + net.a(normed)


def shrunk(net: Any, x: Tensor) -> Tensor:
    inner = net.a(x)
    return torch.cat([x + net.b(inner), inner], 1)


def two_streams(net: Any, x: Tensor) -> Tensor:
    a, b = net.a(x), net.b(x)
    return torch.cat([a + net.c(b), b + net.d(a)], 1)


ACCEPTED: dict[str, tuple[Run, dict[str, nn.Module], list[str]]] = {
    # name: forward, parts, names of the branches; "+" marks those with a shortcut
    "basic": (lambda m, x: F.relu(x + m.a(x)), {"a": block()}, ["a"]),
    "in place": (lambda m, x: m.a(x).add_(x).relu_(), {"a": block()}, ["a"]),
    "pre-activation in place": (
        lambda m, x: x + m.a(F.relu(m.norm(x), True)),
        {"a": block(), "norm": nn.BatchNorm2d(4)},
        ["a"],
    ),
    "downsample": (lambda m, x: m.a(x) + m.s(x), {"a": block(4, 8, 2), "s": conv(4, 8, 1, 2)}, ["a+"]),
    "pool": (lambda m, x: F.max_pool2d(x, 2) + m.a(x), {"a": block(4, 4, 2)}, ["a+"]),
    "separable shortcut": (
        lambda m, x: m.a(x) + m.s(x),
        {"a": nn.Sequential(block(), conv()), "s": nn.Sequential(conv(groups=4), conv(kernel=1))},
        ["a+"],
    ),
    "shared pre-activation": (
        preact_projection,
        {"norm": nn.BatchNorm2d(4), "a": block(), "short": conv(kernel=1)},
        ["a+"],
    ),
    "scaled stream": (lambda m, x: 0.7 * x + m.a(x), {"a": block()}, ["a+"]),
    "layer scale and drop path": (lambda m, x: x + drop_path(m, m.a(x) * m.scale), {"a": block()}, ["a"]),
    "dropout": (lambda m, x: x + F.dropout(m.a(x), 0.5, m.training), {"a": block()}, ["a"]),
    "squeeze and excitation": (
        lambda m, x: x + gate(m, m.a(x)),
        {"a": block(), "gate": conv(kernel=1)},
        ["model"],
    ),
    "post-norm": (lambda m, x: m.norm(x + m.a(x)), {"a": block(), "norm": nn.GroupNorm(2, 4)}, ["a"]),
    "windows": (lambda m, x: x + shifted(m, x), linears("query", "key", "value", "bias"), ["model"]),
    "shared module": (twice, {"a": block()}, ["a", "a#2"]),
    "nested": (lambda m, x: x + ((b := m.b(x)) + m.c(b)), {"b": conv(), "c": block()}, ["c", "model"]),
    "parallel": (parallel, {"norm": nn.GroupNorm(2, 4), "a": block(), "b": block()}, ["a", "b"]),
    "parallel, summed": (
        parallel_summed,
        {"norm": nn.GroupNorm(2, 4), "a": block(), "b": block()},
        ["model"],
    ),
    "shrunk": (shrunk, {"a": conv(), "b": conv()}, ["b.0"]),
    "position": (lambda m, x: m.norm(x) + m.scale, {"norm": conv()}, []),
    "rotary": (lambda m, x: (q := m.a(x)) * 0.6 + q.flip(1) * 0.8, {"a": conv()}, []),
    "gelu": (lambda m, x: (q := m.a(x)) * (1 + torch.tanh(q + 0.04 * q**3)), {"a": conv()}, []),
}
REFUSED: dict[str, tuple[Run, dict[str, nn.Module], str]] = {
    "output used": (
        lambda m, x: torch.cat([x + (b := m.a(x)), b], 1),
        {"a": nn.Conv2d(4, 4, 1)},
        "what it adds is needed elsewhere: `conv2d` is also used by `cat`",
    ),
    "contraction shared": (
        lambda m, x: torch.cat([x + (b := m.a(x))[:, :4], b[:, 4:]], 1),
        {"a": nn.Conv2d(4, 8, 1)},
        "no contraction runs for this branch alone: `conv2d` is also used by",
    ),
    "two streams": (
        two_streams,
        {name: conv() for name in "abcd"},
        "`batch_norm` is also used by `conv2d_3`, and `batch_norm_2` does not start from it: two streams meet",
    ),
    "different entries": (
        lambda m, x: torch.cat([m.c(a := m.a(x)) + m.d(m.e(b := m.b(x))), a, b], 1),
        {name: conv() for name in "abcde"},
        "its sides start from different values: `batch_norm` and `batch_norm_",
    ),
    "parallel main paths": (
        lambda m, x: m.a(x) + m.b(x),
        {"a": block(), "b": block()},
        "its sides are parallel main paths of 2 and 2 contractions",
    ),
    "equal sides": (lambda m, x: m.a(x) + m.b(x), {"a": conv(), "b": conv()}, "equally many contractions"),
    "shape": (
        lambda m, x: (p := x.mean((2, 3), keepdim=True)) + m.a(p.expand(-1, -1, 8, 8)),
        {"a": block()},
        r"`mean`, which would remain, is float32\[.*, 4, 1, 1\], but the sum is float32\[.*, 4, 8, 8\]",
    ),
    "dtype": (lambda m, x: x + m.a(x).double(), {"a": block()}, "is float32.*, but the sum is float64"),
    "alpha": (lambda m, x: torch.add(m.a(x), x, alpha=2), {"a": block()}, "enters scaled by 2"),
}


def made(run: Run, parts: dict[str, nn.Module], training: bool) -> fx.GraphModule:
    return exported(Made(run, **parts), (torch.randn(2, 4, 8, 8),), {}, training)


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
    regions = find_regions(module.graph)
    with torch.no_grad():
        expected = module(*args, **kwargs)
        for branch in regions.branches:
            assert {branch.entry, branch.exit}.isdisjoint({*branch.body, *branch.shortcut})
            assert set(branch.body).isdisjoint(branch.shortcut)
            assert branch.body[-1] == branch.output
            result = skipped(module, branch)(*args, **kwargs)
            assert (result.shape, result.dtype) == (expected.shape, expected.dtype)


both_modes = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])


@both_modes
@pytest.mark.parametrize("name", ACCEPTED)
def test_branches_of_small_nets(name: str, training: bool) -> None:
    run, parts, expected = ACCEPTED[name]
    module = made(run, parts, training)
    regions = find_regions(module.graph)
    assert [branch.name + "+" * bool(branch.shortcut) for branch in regions.branches] == expected
    assert len(regions.refusals) == (name in ("parallel, summed", "windows"))
    check_branches(module, (torch.randn(3, 4, 8, 8),), {})


@both_modes
@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, training: bool) -> None:
    run, parts, reason = REFUSED[name]
    regions = find_regions(made(run, parts, training).graph)
    assert regions.branches == ()
    assert re.search(reason, regions.refusals[0].reason)
    assert "test_regions.py" in (regions.refusals[0].line or "")


@settings(
    max_examples=8, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
@given(st.one_of(cnns(), transformer_nets()), st.booleans())
def test_branches_of_random_nets(net: Net, training: bool) -> None:
    module = exported(net.module, net.args, net.kwargs, training)
    check_branches(module, *net.inputs(3))


class Residual(nn.Module):
    """Two blocks on a stem; `kept` says which of the blocks run."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = conv(), nn.ModuleList([block(4, 8, 2), block(8, 8)])
        self.short, self.head, self.kept = conv(4, 8, 1, 2), nn.Linear(8, 3), (True, True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.short(x) + self.blocks[0](x) if self.kept[0] else self.short(x)
        x = F.relu(x + self.blocks[1](x) if self.kept[1] else x)
        return self.head(x.mean((2, 3)))


@both_modes
@pytest.mark.parametrize("index", [0, 1])
def test_a_skipped_branch_equals_the_network_without_it(index: int, training: bool) -> None:
    net, x = Residual(), torch.randn(3, 4, 8, 8)
    module = exported(net, (torch.randn(2, 4, 8, 8),), {}, training)
    result = skipped(module, find_regions(module.graph).branches[index])(x)
    net.kept = (index != 0, index != 1)
    assert torch.equal(result, net.train(training)(x))


def test_side_effects_belong_to_the_branch() -> None:
    graph = exported(Residual(), (torch.randn(2, 4, 8, 8),), {}, training=True).graph
    counters = [node.name for node in graph.nodes if "num_batches_tracked" in str(node.args)]
    assert len(counters) == 6
    first, second = find_regions(graph).branches
    assert [
        [n in side for n in counters].count(True) for side in (first.body, first.shortcut, second.body)
    ] == [2, 1, 2]


def test_a_write_into_a_slice_belongs_to_the_branch() -> None:
    run, parts, _ = ACCEPTED["windows"]
    graph = made(run, parts, training=False).graph
    (branch,) = find_regions(graph).branches
    computed = [node.name for node in graph.nodes if node.op == "call_function" and node.name != branch.exit]
    assert any(name.startswith("copy_") for name in computed)
    assert set(computed) - {"sym_size_int"} <= set(branch.body) | {
        n for n in computed if n.startswith("sym_size")
    }


def test_analysis_is_pure_and_repeatable() -> None:
    graph = exported(Residual(), (torch.randn(2, 4, 8, 8),), {}, training=True).graph
    before = str(graph)
    assert find_regions(graph) == find_regions(graph)
    assert str(graph) == before


class CrossAttention(nn.Module):
    """A masked encoder layer and a decoder layer that reads its result; one token mask per input."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        self.decoder = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
        self.again = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)

    def forward(self, source: Tensor, mask: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.encoder(source, src_key_padding_mask=mask)
        return self.again(self.decoder(target, memory), memory), memory


@both_modes
def test_side_inputs_do_not_hide_the_stream(training: bool) -> None:
    args = torch.randn(2, 5, 8), torch.zeros(2, 5, dtype=torch.bool), torch.randn(2, 6, 8)
    regions = find_regions(exported(CrossAttention(), args, {}, training).graph)
    names = [branch.name for branch in regions.branches]
    assert names[:2] == ["encoder.self_attn", "encoder"]
    assert names[2:5] == ["decoder.self_attn", "decoder.multihead_attn", "decoder"]
    assert len(names) == 8
    assert regions.refusals == ()
    # The decoder is the trunk; the encoder enters through the bodies of its branches.
    assert [name for name in regions.trunk if name.startswith("add")] == [
        b.exit for b in regions.branches[2:]
    ]
    assert regions.trunk[0] == "target"


# --- Decisions --------------------------------------------------------------------------------------------------


def decide(*_features: Tensor) -> float:
    return 1.0


def gated(module: fx.GraphModule, features: str, target: str) -> fx.Graph:
    """The value of node `target`, scaled by a decision on node `features`."""
    graph = module.graph
    nodes = {node.name: node for node in graph.nodes}
    with graph.inserting_after(nodes[max(features, target, key=list(nodes).index)]):
        decision = graph.call_function(decide, (nodes[features],))
    with graph.inserting_after(decision):
        scaled = graph.call_function(aten.mul.Tensor, (nodes[target], decision))
        scaled.meta = dict(nodes[target].meta)
    nodes[target].replace_all_uses_with(scaled, lambda user: user not in (scaled, decision))
    graph.lint()
    return graph


def test_decisions_carry_no_data() -> None:
    """A gate on a branch, as a pass inserts it, changes neither the branches nor the trunk."""
    module = exported(Residual(), (torch.randn(2, 4, 8, 8),), {}, training=False)
    before = find_regions(module.graph)
    last = before.branches[1]
    after = find_regions(gated(module, last.entry, last.output), {decide})
    assert after.trunk == before.trunk
    assert [branch.name for branch in after.branches] == [branch.name for branch in before.branches]
    assert set(after.branches[1].body) - set(last.body) == {"decide", "mul"}


def test_what_a_decision_reads_is_needed() -> None:
    """The gate of the head reads a value of the second body: only what follows that value can be skipped."""
    module = exported(Residual(), (torch.randn(2, 4, 8, 8),), {}, training=False)
    before = find_regions(module.graph).branches[1]
    inner = next(name for name in before.body if name.startswith("relu"))
    after = find_regions(gated(module, inner, "mean"), {decide}).branches[1]
    assert inner in before.body
    assert inner not in after.body
    assert set(after.body) < set(before.body)


# --- Stages -----------------------------------------------------------------------------------------------------


def test_a_region_belongs_to_the_stage_in_which_it_ends() -> None:
    graph = exported(Residual(), (torch.randn(2, 4, 8, 8),), {}, training=False).graph
    regions = find_regions(graph)
    stage = stages(graph, regions, positions(graph))
    # Both blocks end at 4 x 4: the stem is part of the first stage, the head of the last.
    assert set(stage.values()) == {0}
    two = nn.Sequential(Residual().stem, Made(lambda m, x: x + m.a(x), a=block()), Residual())
    graph = exported(two, (torch.randn(2, 4, 8, 8),), {}, training=False).graph
    regions = find_regions(graph)
    stage = stages(graph, regions, positions(graph))
    assert [stage[branch.exit] for branch in regions.branches] == [0, 1, 1]
    assert {stage[name] for name in (*regions.branches[1].body, *regions.branches[1].shortcut)} == {1}
    assert stage[graph.output_node().name] == stage[regions.trunk[-1]] == 1
    assert stage["x" if "x" in stage else "input"] == stage[regions.trunk[1]] == 0


def plain(*widths: int) -> nn.Sequential:
    parts = [part for width in widths for part in (nn.LazyConv2d(width, 3, padding=1), nn.MaxPool2d(2))]
    return nn.Sequential(*parts, nn.Flatten(), nn.LazyLinear(5))


def test_stages_without_branches_are_runs_of_one_resolution() -> None:
    net, images = plain(4, 4, 8), torch.randn(2, 3, 16, 16)
    net(images)
    graph = exported(net, (images,), {}, training=False).graph
    regions = find_regions(graph)
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
    assert find_regions(graph) == Regions((), (), ())
    assert set(stages(graph, find_regions(graph), {}).values()) == {0}
