"""Inference of dimension types: what moves together, what stays and why, in any order of the graphs."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dyncompile.analysis.dims.algebra import render
from tests import handmade
from tests.handmade import mystery
from tests.support import Make, Subject, subject
from tests.validity import Trial, check_gaps, check_orders

NETS = (
    handmade.resnet,
    handmade.headless,
    handmade.plain_cnn,
    handmade.grouped,
    handmade.depthwise_se,
    handmade.dense,
    handmade.shuffle,
    handmade.vit,
    handmade.bert_like,
    handmade.decoder,
    handmade.flatten_cnn,
    handmade.two_inputs,
    handmade.dtype_literals,
)

# -- orders -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", NETS)
def test_order_and_repetition_do_not_matter(make: Make) -> None:
    """As on random networks, in `test_random_nets`."""
    trial = Trial(subject(make))
    check_gaps(trial)
    check_orders(trial)


# -- what moves together ----------------------------------------------------------------------------


def axes(axis: int, *tensors: str) -> set[str]:
    return {f"{tensor}[{axis}]" for tensor in tensors}


def out(*layers: str) -> set[str]:
    """Rows of the weights and the biases of linear layers and convolutions."""
    return axes(0, *(f"{layer}.{name}" for layer in layers for name in ("weight", "bias")))


def into(*layers: str) -> set[str]:
    """Columns of weights."""
    return axes(1, *(f"{layer}.weight" for layer in layers))


def norm(*layers: str) -> set[str]:
    """All vectors of batch norms."""
    names = ("weight", "bias", "running_mean", "running_var")
    return axes(0, *(f"{layer}.{name}" for layer in layers for name in names))


def conv_norm(*blocks: str) -> set[str]:
    """Rows of the convolution and the vectors of the norm after it."""
    return axes(0, *(f"{block}.0.weight" for block in blocks)) | norm(*(f"{block}.1" for block in blocks))


RESNET = {
    "stem.0.0.weight[0]": (
        8,
        conv_norm("stem.0", "stage1.0.conv2", "stage1.1.conv2")
        | into("stage1.0.conv1.0", "stage1.1.conv1.0", "stage2.0.conv1.0", "stage2.0.downsample.0"),
    ),
    "stage1.0.conv1.0.weight[0]": (8, conv_norm("stage1.0.conv1") | into("stage1.0.conv2.0")),
    "stage1.1.conv1.0.weight[0]": (8, conv_norm("stage1.1.conv1") | into("stage1.1.conv2.0")),
    "stage2.0.conv1.0.weight[0]": (16, conv_norm("stage2.0.conv1") | into("stage2.0.conv2.0")),
    "stage2.0.conv2.0.weight[0]": (
        16,
        conv_norm("stage2.0.conv2", "stage2.0.downsample", "stage2.1.conv2")
        | into("stage2.1.conv1.0", "head.2"),
    ),
    "stage2.1.conv1.0.weight[0]": (16, conv_norm("stage2.1.conv1") | into("stage2.1.conv2.0")),
}


def vit_block(block: str) -> dict[str, tuple[int, set[str]]]:
    fused = out(f"{block}.qkv") | into(f"{block}.proj")
    return {
        f"{block}.qkv.weight[0].0": (3, fused),
        f"{block}.qkv.weight[0].1": (4, fused),
        f"{block}.fc1.weight[0]": (20, out(f"{block}.fc1") | into(f"{block}.fc2")),
    }


VIT_STREAM = {"cls_token[2]", "pos_embed[2]", "norm.weight[0]", "norm.bias[0]"}
for _block in ("blocks.0", "blocks.1"):
    VIT_STREAM |= out(f"{_block}.norm1", f"{_block}.norm2", f"{_block}.proj", f"{_block}.fc2")
    VIT_STREAM |= into(f"{_block}.qkv", f"{_block}.fc1")

GROUPS: dict[Make, dict[str, tuple[int, set[str]]]] = {
    handmade.resnet: RESNET,
    handmade.headless: {
        name: (size, carriers - into("head.2"))
        for name, (size, carriers) in RESNET.items()
        if name != "stage2.0.conv2.0.weight[0]"
    },
    handmade.depthwise_se: {
        "0.0.weight[0]": (
            8,
            conv_norm("0", "1.project", "2.0") | into("1.expand.0", "3.2"),
        ),
        "1.expand.0.weight[0]": (
            20,
            conv_norm("1.expand", "1.depthwise")
            | into("1.gates.reduce", "1.project.0")
            | out("1.gates.expand"),
        ),
        "1.gates.reduce.weight[0]": (4, out("1.gates.reduce") | into("1.gates.expand")),
        "2.0.0.weight[0].1": (2, conv_norm("2.0") | into("3.2")),
    },
    handmade.dense: {
        "0.0.weight[0]": (
            6,
            conv_norm("0")
            | norm("1.layers.0.0", "1.layers.1.0", "1.layers.2.0")
            | into("1.layers.0.2.0", "1.layers.1.2.0", "1.layers.2.2.0", "2.0"),
        ),
        "1.layers.0.2.0.weight[0]": (
            4,
            conv_norm("1.layers.0.2")
            | norm("1.layers.1.0", "1.layers.2.0")
            | into("1.layers.1.2.0", "1.layers.2.2.0", "2.0"),
        ),
        "1.layers.1.2.0.weight[0]": (
            4,
            conv_norm("1.layers.1.2") | norm("1.layers.2.0") | into("1.layers.2.2.0", "2.0"),
        ),
        "1.layers.2.2.0.weight[0]": (4, conv_norm("1.layers.2.2") | into("2.0")),
        "2.0.weight[0]": (10, out("2.0") | into("3.2")),
    },
    handmade.vit: {
        "cls_token[2]": (12, VIT_STREAM | out("patch_embed") | into("head")),
        **vit_block("blocks.0"),
        **vit_block("blocks.1"),
    },
    handmade.flatten_cnn: {
        "0.0.0.weight[0]": (6, conv_norm("0.0") | into("2.0")),
        "2.0.weight[0]": (10, out("2.0") | into("2.2")),
    },
    handmade.two_inputs: {
        "vision.0.0.weight[0]": (8, conv_norm("vision.0") | into("head")),
        "table.weight[0]": (6, out("table") | into("head")),
    },
    handmade.buffer_constant: {},
    handmade.multi_output: {},
}


@pytest.mark.parametrize("make", GROUPS, ids=lambda make: make.__name__)
def test_elastic_dims_and_their_carriers(make: Make) -> None:
    found = {
        name: (one.dim.size, {f"{tensor}[{axis}]" for tensor, axis in one.carriers})
        for name, one in subject(make).facts.dims.elastic.items()
    }
    assert found == GROUPS[make]


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (handmade.plain_cnn, 3),
        (handmade.grouped, 5),
        (handmade.shuffle, 3),
        (handmade.bert_like, 10),
        (handmade.decoder, 10),
        (handmade.dtype_literals, 1),
    ],
)
def test_number_of_elastic_dims(make: Make, count: int) -> None:
    assert len(subject(make).facts.dims.elastic) == count


TYPES = [
    (
        handmade.vit,
        "blocks.0.",
        """
        qkv.weight  (3, qkv[0].0:3, qkv[0].1:4) | cls_token[2]:12
        qkv.bias    (3, qkv[0].0:3, qkv[0].1:4)
        proj.weight cls_token[2]:12 | (qkv[0].0:3, qkv[0].1:4)
        """,
    ),
    (
        handmade.bert_like,
        "layers.1.",
        """
        query.weight  (query[0].0:2, query[0].1:6) | words[1]:12
        key.bias      (query[0].0:2, query[0].1:6)
        value.weight  (query[0].0:2, value[0].1:6) | words[1]:12
        output.weight words[1]:12 | (query[0].0:2, value[0].1:6)
        """,
    ),
    (
        handmade.decoder,
        "layers.0.",
        """
        k_proj.weight (q_proj[0].0:2, (q_proj[0].2:2 + q_proj[0].2:2)) | embed[1]:12
        v_proj.weight (q_proj[0].0:2, o_proj[1].2:4) | embed[1]:12
        o_proj.weight embed[1]:12 | (q_proj[0].0:2, q_proj[0].1:2, o_proj[1].2:4)
        """,
    ),
    (
        handmade.grouped,
        "",
        """
        0.0.0.weight (0.0.0[0].0:2, 0.0.0[0].1:2, 0.0.0[0].2:3) | 3 | 3 | 3
        0.4.0.weight (0.0.0[0].0:2, 0.4.0[0].1:3) | (0.0.0[0].1:2, 0.2.0[0].2:2) | 3 | 3
        0.2.1.bias   (0.0.0[0].0:2, 0.0.0[0].1:2, 0.2.0[0].2:2)
        0.2.0.weight (0.0.0[0].0:2, 0.0.0[0].1:2, 0.2.0[0].2:2) | 0.0.0[0].2:3 | 3 | 3
        2.2.weight   5 | (0.0.0[0].0:2, 0.4.0[0].1:3)
        """,
    ),
    (
        handmade.shuffle,
        "",
        """
        0.1.running_var   (0.0[0].0:3 + 0.0[0].1:3 + 0.0[0].2:6)
        1.body.0.0.weight (0.0[0].0:3 + 0.0[0].1:3) | 0.0[0].2:6 | () | ()
        2.body.0.0.weight (0.0[0].0:3, 2) | (0.0[0].1:3, 2) | () | ()
        3.2.weight        5 | (0.0[0].0:3, 4)
        """,
    ),
    (
        handmade.dense,
        "1.layers.",
        """
        1.0.running_mean (0.0[0]:6 + 0.2.0[0]:4)
        1.2.0.weight     1.2.0[0]:4 | (0.0[0]:6 + 0.2.0[0]:4) | 3 | 3
        """,
    ),
    (
        handmade.flatten_cnn,
        "",
        "2.0.weight 2.0[0]:10 | (0.0.0[0]:6, 16)",
    ),
]


@pytest.mark.parametrize(("make", "prefix", "listing"), TYPES, ids=[make.__name__ for make, _, _ in TYPES])
def test_types_as_text(make: Make, prefix: str, listing: str) -> None:
    """Names are shortened by the prefix, and by the word weight."""
    state = subject(make).facts.dims.state
    expected = dict(line.split(maxsplit=1) for line in listing.strip().splitlines())
    texts = {name: " | ".join(map(render, state[prefix + name])) for name in expected}
    assert {
        name: text.replace(prefix, "").replace(".weight[", "[") for name, text in texts.items()
    } == expected


# -- zero-equivalence -------------------------------------------------------------------------------


class ChannelSoftmax(nn.Module):
    """A hidden layer under a softmax, one under a mean, one under neither."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 7), nn.Linear(7, 8), nn.Linear(8, 9)
        self.head = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x).softmax(-1))
        return self.head(self.c(y - y.mean(1, keepdim=True)))


def channel_softmax() -> tuple[nn.Module, Tensor]:
    return ChannelSoftmax(), torch.randn(2, 6)


@pytest.mark.parametrize(
    ("make", "mixed"),
    [
        (handmade.resnet, {}),
        (handmade.dense, {}),
        (handmade.depthwise_se, {}),
        (handmade.vit, {"cls_token[2]": "layer norm"}),
        (handmade.bert_like, {"words.weight[1]": "layer norm"}),
        (handmade.decoder, {"embed.weight[1]": "mean"}),
        (handmade.dtype_literals, {"conv.weight[0]": "layer norm"}),
        (channel_softmax, {"a.weight[0]": "softmax", "b.weight[0]": "mean"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_zero_equivalence(make: Make, mixed: dict[str, str]) -> None:
    elastic = subject(make).facts.dims.elastic
    assert {name: one.mixed[0].how for name, one in elastic.items() if not one.zero_equivalent} == mixed


def test_what_is_mixed_names_the_line() -> None:
    (mixing,) = subject(channel_softmax).facts.dims.elastic["a.weight[0]"].mixed
    assert mixing.line.startswith(__file__)
    assert mixing.line.endswith("y = self.b(self.a(x).softmax(-1))")


# -- what stays, and why ----------------------------------------------------------------------------


class Awkward(nn.Module):
    """Widths that cannot move for one reason each."""

    def __init__(self) -> None:
        super().__init__()
        self.picked, self.shifted, self.sorted = nn.Linear(6, 7), nn.Linear(6, 8), nn.Linear(6, 9)
        self.head, self.unused = nn.Linear(16, 4), nn.Linear(3, 5)
        self.register_buffer("order", torch.tensor([3, 1, 2, 0]))
        self.order: Tensor

    def forward(self, x: Tensor) -> Tensor:
        first = self.picked(x)[:, self.order]
        second = self.shifted(x).roll(1, 1)[:, ::3]
        third = self.sorted(x).cumsum(1)
        return self.head(torch.cat((first, second, third), 1))


def awkward() -> tuple[nn.Module, Tensor]:
    return Awkward(), torch.randn(2, 6)


FROZEN: list[tuple[Make, str, int, str, str]] = [
    (
        handmade.headless,
        "stage2.1.conv2.0.weight",
        0,
        "it is part of the model's output",
        "self.conv2(F.relu(self.conv1(x))) + shortcut)",
    ),
    (handmade.resnet, "stem.0.0.weight", 1, "meets the fixed size 3", "return self.head(self.features(x))"),
    (
        handmade.resnet,
        "head.2.weight",
        0,
        "it is part of the model's output",
        "return self.head(self.features(x))",
    ),
    (handmade.vit, "pos_embed", 1, "meets the fixed size 5", "dim=1) + self.pos_embed"),
    (handmade.vit, "patch_embed.weight", 2, "kernel positions", "x = self.patch_embed(x).flatten(2)"),
    (
        handmade.bert_like,
        "words.weight",
        0,
        "rows that are looked up by index",
        "self.norm(self.words(input_ids)",
    ),
    (handmade.buffer_constant, "conv.0.weight", 0, "meets the fixed size 6", "* self.scale + self.offset)"),
    (handmade.multi_output, "second.0.weight", 0, "it is part of the model's output", "OUTPUTS[self.kind]"),
    (
        awkward,
        "picked.weight",
        0,
        "positions that are looked up by index",
        "first = self.picked(x)[:, self.order]",
    ),
    (awkward, "shifted.weight", 0, "a cyclic shift along it", "second = self.shifted(x).roll(1, 1)[:, ::3]"),
    (awkward, "sorted.bias", 0, "aten.cumsum.default along it", "third = self.sorted(x).cumsum(1)"),
    (awkward, "unused.weight", 1, "no captured graph reads this tensor", ""),
]


@pytest.mark.parametrize(("make", "tensor", "axis", "reason", "code"), FROZEN)
def test_frozen_axes_say_why_and_where(make: Make, tensor: str, axis: int, reason: str, code: str) -> None:
    (found,) = [f for f in subject(make).facts.dims.frozen if (f.tensor, f.axis) == (tensor, axis)]
    assert found.reason == reason
    assert code in found.line
    assert not code or found.line.startswith((__file__, handmade.__path__[0]))


@pytest.mark.parametrize("make", [*NETS, awkward, handmade.buffer_constant, handmade.multi_output])
def test_every_axis_is_elastic_or_frozen_with_a_reason(make: Make) -> None:
    facts = subject(make).facts
    frozen = {(one.tensor, one.axis): one.reason for one in facts.dims.frozen}
    for name, parameter in subject(make).program.state.named_parameters():
        for axis, n in enumerate(parameter.shape):
            moves = any(factor for factor in facts.dims.state[name][axis] if not isinstance(factor, int))
            assert moves or n == 1 or frozen[name, axis]


def test_state_that_no_graph_reads_is_listed() -> None:
    assert subject(awkward).facts.dims.unread == ("unused.weight", "unused.bias")


class Unknown(nn.Module):
    """`mystery` between two layers; the widths before it are free."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 7), nn.Linear(7, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(mystery(self.second(F.relu(self.first(x)))))


def unknown() -> tuple[nn.Module, Tensor]:
    return Unknown(), torch.randn(2, 6)


@pytest.mark.parametrize("make", [unknown, handmade.unknown_op_vit])
def test_operators_without_a_rule_freeze_what_they_touch_and_nothing_else(make: Make) -> None:
    facts = subject(make).facts
    (note,) = facts.dims.unknown
    assert (note.operator, note.reason) == (
        "tests.mystery.default",
        "no rule for the operator tests.mystery.default",
    )
    assert "mystery(" in note.line or "self.act(" in note.line
    touched = {f.tensor: f for f in facts.dims.frozen if f.reason == note.reason}
    expected = {"second.weight", "second.bias"}
    if make is handmade.unknown_op_vit:
        expected = {"blocks.1.fc1.weight", "blocks.1.fc1.bias"}
        assert set(facts.dims.elastic) == set(GROUPS[handmade.vit]) - {"blocks.1.fc1.weight[0]"}
    else:
        assert set(facts.dims.elastic) == {"first.weight[0]"}
    assert set(touched) == expected
    assert all(f.line == note.line for f in touched.values())


# -- tensors that are one ---------------------------------------------------------------------------


class Tied(nn.Module):
    """One table as embedding and as classifier, one layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight
        self.twice = nn.Linear(6, 6)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.twice(self.twice(self.embed(ids))))


def tied() -> tuple[nn.Module, Tensor]:
    return Tied(), torch.randint(9, (2, 3))


def test_tied_tensors_share_their_dims() -> None:
    facts = subject(tied).facts
    (one,) = facts.dims.elastic.values()
    carriers = axes(1, "embed.weight", "head.weight", "twice.weight") | axes(0, "twice.weight", "twice.bias")
    assert {f"{tensor}[{axis}]" for tensor, axis in one.carriers} == carriers
    assert facts.dims.state["embed.weight"] is facts.dims.state["head.weight"] or (
        facts.dims.state["embed.weight"] == facts.dims.state["head.weight"]
    )


def names(subjects: Iterable[Subject]) -> list[list[str]]:
    return [list(one.facts.dims.elastic) for one in subjects]


def test_names_of_elastic_dims_are_stable() -> None:
    """Two captures of the same network give the same names in the same order."""
    module, example = handmade.grouped()
    again = Subject(module.eval(), (example,), {})
    assert names([again]) == names([subject(handmade.grouped)])
