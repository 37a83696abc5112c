"""Width slicing against static networks that are built and cut by hand, at routes that are not full."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dyncompile as dc
from dyncompile.analysis.facts import analyze
from dyncompile.spec import parse_spec
from dyncompile.verify import count_macs
from tests import handmade, oracles
from tests.nets import randomize
from tests.oracles import Cut, cut_tensor, narrowed, positions_of, state_of
from tests.support import ALL, FINE, Make, Subject, columns, relative, same, snapshot, subject

TOLERANCE = 1e-5
IMAGES, IDS = torch.Size((4, 3, 8, 8)), torch.Size((4, 6))


@dataclass(frozen=True)
class Case:
    """A network, a pass, and for every column the sizes expected and the narrow network built by hand."""

    build: type[nn.Module]
    spec: str
    sizes: Mapping[str, tuple[int, ...]]
    narrow: Callable[[int], tuple[nn.Module, Cut]]

    @property
    def inputs(self) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        if self.build is oracles.Decoder:
            return torch.randint(11, IDS, generator=generator)
        return torch.randn(IMAGES, generator=generator)


def _residual(column: int) -> tuple[nn.Module, Cut]:
    widths = [(2, 4, 4, 6), (4, 6, 8, 10), (6, 10, 12, 16), (8, 12, 16, 20)][column]
    return oracles.Residual(*widths), oracles.Residual.cut(*widths)


def _groups(column: int) -> tuple[nn.Module, Cut]:
    groups, hidden = [(1, 2), (2, 3), (3, 5), (4, 6)][column]
    cut = oracles.Grouped.cut(range(groups), range(3), range(2), hidden, 3)
    return oracles.Grouped(groups, 3, 2, hidden), cut


def _within_groups(column: int) -> tuple[nn.Module, Cut]:
    fan_in, fan_out, hidden = [(1, 1, 2), (2, 1, 3), (2, 2, 5), (3, 2, 6)][column]
    cut = oracles.Grouped.cut(range(4), range(fan_in), range(fan_out), hidden, 3)
    return oracles.Grouped(4, fan_in, fan_out, hidden), cut


def _dense(column: int) -> tuple[nn.Module, Cut]:
    widths = [(2, 1, 1, 2), (3, 2, 3, 4), (5, 3, 4, 5), (6, 4, 5, 7)][column]
    return oracles.Dense(*widths), oracles.Dense.cut(*widths)


def _heads(column: int) -> tuple[nn.Module, Cut]:
    heads, hidden = [(1, 8), (2, 12), (3, 20), (4, 24)][column]
    return oracles.Vit(16, heads, 4, hidden), oracles.Vit.cut(16, range(heads), range(4), hidden)


def _head_dims(column: int) -> tuple[nn.Module, Cut]:
    width, dim, hidden = [(4, 1, 6), (8, 2, 12), (12, 3, 18), (16, 4, 24)][column]
    return oracles.Vit(width, 4, dim, hidden), oracles.Vit.cut(width, range(4), range(dim), hidden)


def _key_heads(column: int) -> tuple[nn.Module, Cut]:
    width, heads, hidden = [(4, 1, 4), (8, 2, 12), (8, 3, 16), (12, 4, 20)][column]
    cut = oracles.Decoder.cut(width, range(heads), range(2), hidden)
    return oracles.Decoder(width, heads, 2, hidden), cut


def _shared_queries(column: int) -> tuple[nn.Module, Cut]:
    share, hidden = [(1, 5), (1, 10), (2, 15), (2, 20)][column]
    cut = oracles.Decoder.cut(12, range(4), range(share), hidden)
    return oracles.Decoder(12, 4, share, hidden), cut


CASES = {
    "residual": Case(
        oracles.Residual,
        "dsnet(gate=False, divisor=2, minimum=2)",
        {
            "conv.weight[0]": (2, 4, 6, 8),
            "a.conv1.weight[0]": (4, 6, 10, 12),
            "b.conv1.weight[0]": (4, 8, 12, 16),
            "b.conv2.weight[0]": (6, 10, 16, 20),
        },
        _residual,
    ),
    "groups": Case(
        oracles.Grouped,
        ALL,
        {"stem.weight[0].0": (1, 2, 3, 4), "squeeze.weight[0]": (2, 3, 5, 6)},
        _groups,
    ),
    "within groups": Case(
        oracles.Grouped,
        f"dsnet({FINE}, exclude='stem.weight.0..0')",
        {
            "stem.weight[0].1": (1, 2, 2, 3),
            "grouped.weight[0].1": (1, 1, 2, 2),
            "squeeze.weight[0]": (2, 3, 5, 6),
        },
        _within_groups,
    ),
    "dense": Case(
        oracles.Dense,
        ALL,
        {
            "stem.weight[0]": (2, 3, 5, 6),
            "conv1.weight[0]": (1, 2, 3, 4),
            "conv2.weight[0]": (1, 3, 4, 5),
            "conv3.weight[0]": (2, 4, 5, 7),
        },
        _dense,
    ),
    "heads": Case(
        oracles.Vit,
        "dsnet(gate=False, divisor=4, minimum=4)",
        {f"blocks.{i}.qkv.weight[0].0": (1, 2, 3, 4) for i in (0, 1)}
        | {f"blocks.{i}.fc1.weight[0]": (8, 12, 20, 24) for i in (0, 1)},
        _heads,
    ),
    "head dims and embedding": Case(
        oracles.Vit,
        f"dsnet({FINE}, embedding=True, exclude='qkv.*0$')",
        {f"blocks.{i}.qkv.weight[0].1": (1, 2, 3, 4) for i in (0, 1)}
        | {f"blocks.{i}.fc1.weight[0]": (6, 12, 18, 24) for i in (0, 1)}
        | {"token[2]": (4, 8, 12, 16)},
        _head_dims,
    ),
    "key heads and embedding": Case(
        oracles.Decoder,
        "dsnet(gate=False, divisor=4, minimum=4, embedding=True)",
        {"norm1[0]": (4, 8, 8, 12), "q.weight[0].0": (1, 2, 3, 4), "gate.weight[0]": (4, 12, 16, 20)},
        _key_heads,
    ),
    "query heads": Case(
        oracles.Decoder,
        f"dsnet({FINE}, include='gate|q.weight.0..1')",
        {"q.weight[0].1": (1, 1, 2, 2), "gate.weight[0]": (5, 10, 15, 20)},
        _shared_queries,
    ),
}
WITH_STATISTICS = ["residual", "groups", "within groups", "dense"]


@cache
def source(name: str) -> Subject:
    """The wide network of a case; shared, so nobody may change it."""
    torch.manual_seed(2)
    return Subject(randomize(CASES[name].build()).eval(), (CASES[name].inputs,), {})


def dynamic(name: str, **config: Any) -> dc.DynamicModel:
    return source(name).dynamic(CASES[name].spec, **config)


def narrow(name: str, column: int, tensors: Mapping[str, Tensor] | None = None) -> nn.Module:
    """The narrow network with the wide one's weights."""
    module, cut = CASES[name].narrow(column)
    return narrowed(module, tensors or state_of(source(name).module), cut).eval()


# -- outputs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_sizes(name: str) -> None:
    found = {dim: sized.sizes for dim, sized in dynamic(name).program.sized.items()}
    assert found == CASES[name].sizes


@pytest.mark.parametrize("name", CASES)
def test_every_column_equals_the_network_built_by_hand(name: str) -> None:
    dyn, x = dynamic(name), CASES[name].inputs
    with torch.no_grad():
        outputs = []
        for column in range(4):
            expected = narrow(name, column)(x)
            actual, _ = dyn.run(x, policy=dc.Forced(dyn.route(column)))
            static = dc.specialize(dyn, dyn.route(column))
            assert relative(expected, actual) <= TOLERANCE, column
            assert relative(expected, static(x)) <= TOLERANCE, column
            sizes = {n: tuple(t.shape) for n, t in static.state_dict().items()}
            assert sizes == {
                n: tuple(t.shape) for n, t in narrow(name, column).state_dict().items() if n in sizes
            }
            outputs.append(expected)
    assert all(relative(outputs[3], narrower) > 0.01 for narrower in outputs[:3])


@pytest.mark.parametrize("name", CASES)
def test_rows_of_different_columns_run_together(name: str) -> None:
    dyn, x = dynamic(name), CASES[name].inputs
    order = [2, 0, 3, 0]
    route = {choice: torch.eye(4)[order] for choice in dyn.choices}
    with torch.no_grad():
        together, _ = dyn.run(x, policy=dc.Forced(route))
        alone = torch.cat([narrow(name, column)(x[i : i + 1]) for i, column in enumerate(order)])
    assert relative(alone, together) <= TOLERANCE


def test_stages_move_on_their_own() -> None:
    """A route that is narrow in one stage and wide in the other."""
    dyn, x = dynamic("residual", per="stage"), CASES["residual"].inputs
    first, second = dyn.choices
    widths = (2, 4, 12, 16)
    expected = narrowed(
        oracles.Residual(*widths), state_of(source("residual").module), oracles.Residual.cut(*widths)
    )
    with torch.no_grad():
        actual, _ = dyn.run(x, policy=dc.Forced(dyn.route({first: 0, second: 2})))
        assert relative(expected.eval()(x), actual) <= TOLERANCE


def test_dims_move_on_their_own() -> None:
    dyn, x = dynamic("dense", per="dim"), CASES["dense"].inputs
    route = dyn.route(
        {f"width.{layer}.weight[0]": c for layer, c in (("stem", 1), ("conv1", 0), ("conv2", 2))}
    )
    widths = (3, 1, 4, 7)
    expected = narrowed(oracles.Dense(*widths), state_of(source("dense").module), oracles.Dense.cut(*widths))
    with torch.no_grad():
        assert relative(expected.eval()(x), dyn.run(x, policy=dc.Forced(route))[0]) <= TOLERANCE
        assert relative(expected(x), dc.specialize(dyn, route)(x)) <= TOLERANCE


# -- gradients --------------------------------------------------------------------------------------


def loss(out: Tensor) -> Tensor:
    return out.square().sum()


@pytest.mark.parametrize("column", [0, 2])
@pytest.mark.parametrize("name", CASES)
def test_gradients_land_in_what_is_kept_and_nowhere_else(name: str, column: int) -> None:
    dyn, x = dynamic(name), CASES[name].inputs
    static, cut = narrow(name, column), CASES[name].narrow(column)[1]
    loss(static(x)).backward()
    loss(dyn.run(x, policy=dc.Forced(dyn.route(column)))[0]).backward()
    wanted = {n: p.grad for n, p in static.named_parameters()}
    for parameter_name, parameter in dyn.named_parameters():
        kept = cut_tensor(
            torch.arange(parameter.numel()).view_as(parameter), positions_of(cut, parameter_name)
        )
        outside = torch.ones(parameter.numel(), dtype=torch.bool)
        outside[kept.flatten()] = False
        grad, expected = parameter.grad, wanted[parameter_name]
        assert grad is not None
        assert expected is not None
        assert relative(expected, grad.flatten()[kept]) <= 1e-4, parameter_name
        assert not grad.flatten()[outside].any(), parameter_name


def test_gradients_of_mixed_rows_add_up() -> None:
    dyn, x = dynamic("residual"), CASES["residual"].inputs
    route = {"width": torch.eye(4)[[1, 3, 1, 0]]}
    loss(dyn.run(x, policy=dc.Forced(route))[0]).backward()
    together = {n: p.grad for n, p in dyn.named_parameters()}
    again = dynamic("residual")
    for i, rows in enumerate(route["width"]):
        loss(again.run(x[i : i + 1], policy=dc.Forced({"width": rows[None]}))[0]).backward()
    assert relative(together, {n: p.grad for n, p in again.named_parameters()}) <= 1e-4


# -- statistics -------------------------------------------------------------------------------------


def private_statistics(dyn: dc.DynamicModel, column: int) -> dict[str, Tensor]:
    """Statistics by the source's names: those of the full column are the source's own."""
    prefix = f"dyn.statistics.width.{column}." if column < 3 else ""
    found = {n.removeprefix(prefix): b for n, b in dyn.named_buffers() if n.startswith(prefix)}
    return {n: b for n, b in found.items() if n.endswith(("running_mean", "running_var")) and "dyn." not in n}


@pytest.mark.parametrize("name", WITH_STATISTICS)
def test_every_column_has_its_own_statistics(name: str) -> None:
    """Training steps at mixed columns leave each column the statistics of its own static network."""
    dyn = dynamic(name).train()
    static = {column: narrow(name, column).train() for column in (0, 2, 3)}
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for column in (0, 3, 2, 0, 3, 3, 2):
            x = 2 * torch.randn(IMAGES, generator=generator)
            dyn.run(x, policy=dc.Forced(dyn.route(column)))
            static[column](x)
    untouched = {n: b for n, b in narrow(name, 1).named_buffers() if b.dim()}
    for column, expected in {**static, 1: None}.items():
        wanted = untouched if expected is None else {n: b for n, b in expected.named_buffers() if b.dim()}
        found = private_statistics(dyn, column)
        assert found.keys() == wanted.keys()
        assert all(relative(wanted[n], found[n]) <= TOLERANCE for n in wanted), column
    x = CASES[name].inputs
    dyn.eval()
    with torch.no_grad():
        for column, expected in static.items():
            actual, _ = dyn.run(x, policy=dc.Forced(dyn.route(column)))
            assert relative(expected.eval()(x), actual) <= TOLERANCE
            assert relative(expected(x), dc.specialize(dyn, dyn.route(column))(x)) <= TOLERANCE


def test_full_statistics_are_the_sources_and_start_the_private_ones() -> None:
    dyn, wide = dynamic("residual"), state_of(source("residual").module)
    assert same(private_statistics(dyn, 3), {n: wide[n] for n in private_statistics(dyn, 3)})
    for column, widths in enumerate([(2, 4, 4, 6), (4, 6, 8, 10)]):
        cut = oracles.Residual.cut(*widths)
        for name, found in private_statistics(dyn, column).items():
            assert torch.equal(found, cut_tensor(wide[name], positions_of(cut, name)))


def test_affine_parameters_are_shared() -> None:
    dyn = dynamic("residual")
    assert not [name for name, _ in dyn.named_parameters() if name.startswith("dyn.")]


def test_statistics_of_several_choices_are_written_through() -> None:
    """A norm over dims of two choices keeps one set of statistics: kept positions move, no others."""
    dyn = dynamic("dense", per="dim").train()
    route = dyn.route({"width.stem.weight[0]": 1, "width.conv1.weight[0]": 0, "width.conv2.weight[0]": 2})
    widths = (3, 1, 4, 7)
    cut = oracles.Dense.cut(*widths)
    static = narrowed(oracles.Dense(*widths), state_of(source("dense").module), cut).train()
    before = snapshot(dyn)
    assert not [n for n in before if n.startswith("dyn.statistics") and "norm3" in n]
    with torch.no_grad():
        for seed in range(2):
            x = torch.randn(IMAGES, generator=torch.Generator().manual_seed(seed))
            dyn.run(x, policy=dc.Forced(route))
            static(x)
    buffers = dict(dyn.named_buffers())
    for name in ("norm2.running_mean", "norm2.running_var", "norm3.running_mean", "norm3.running_var"):
        (kept,) = positions_of(cut, name)
        outside = [i for i in range(len(buffers[name])) if i not in (kept or ())]
        assert relative(dict(static.named_buffers())[name], buffers[name][list(kept or ())]) <= TOLERANCE
        assert torch.equal(buffers[name][outside], before[name][outside])
        assert not torch.equal(buffers[name], before[name])
    assert int(buffers["norm3.num_batches_tracked"]) == 2


# -- planning ---------------------------------------------------------------------------------------


class Widths(nn.Module):
    """Hidden layers of many sizes side by side."""

    SIZES = (5, 8, 12, 20, 64)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Linear(4, n) for n in self.SIZES)
        self.last = nn.ModuleList(nn.Linear(n, 3) for n in self.SIZES)

    def forward(self, x: Tensor) -> Tensor:
        outputs = [last(first(x).relu()) for first, last in zip(self.first, self.last, strict=True)]
        return torch.stack(outputs).sum(0)


def widths() -> tuple[nn.Module, Tensor]:
    return Widths(), torch.randn(2, 4)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("", {12: (8, 8, 8, 12), 20: (8, 8, 16, 20), 64: (16, 32, 48, 64)}),
        ("divisor=1, minimum=1", {5: (1, 3, 4, 5), 8: (2, 4, 6, 8), 12: (3, 6, 9, 12), 20: (5, 10, 15, 20)}),
        ("divisor=4, minimum=16", {20: (16, 16, 16, 20), 64: (16, 32, 48, 64)}),
        ("ratios=[0.1, 0.5]", {12: (8, 8, 12), 20: (8, 8, 20), 64: (8, 32, 64)}),
        ("ratios=[0.9], divisor=1", {12: (11, 12), 20: (18, 20), 64: (58, 64)}),
        ("ratios=[0.5], divisor=16, minimum=1", {20: (16, 20), 64: (32, 64)}),
    ],
)
def test_rounding(fields: str, expected: dict[int, tuple[int, ...]]) -> None:
    sized = subject(widths).dynamic(f"dsnet(gate=False, {fields})").program.sized
    found = {one.sizes[-1]: one.sizes for one in sized.values()}
    assert {n: found[n] for n in expected} == expected
    assert all(1 <= n <= sizes[-1] for sizes in found.values() for n in sizes)


@pytest.mark.parametrize(
    ("divisor", "expected"), [(1, (1, 2, 2, 3)), (4, (1, 2, 2, 3)), (8, (2, 2, 2, 3)), (12, None)]
)
def test_heads_round_by_the_channels_that_they_stand_for(
    divisor: int, expected: tuple[int, ...] | None
) -> None:
    """Three heads of four channels: a head is four channels wide."""
    dyn = subject(handmade.vit).dynamic(f"dsnet(gate=False, divisor={divisor}, minimum=4)")
    sized = dyn.program.sized.get("blocks.0.qkv.weight[0].0")
    assert (None if sized is None else sized.sizes) == expected


class Biased(nn.Module):
    """Twelve heads of eight channels with a bias per head and pair of tokens, which comes first."""

    pairs: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.biases = nn.Parameter(torch.randn(9, 12))
        self.qkv, self.out = nn.Linear(16, 3 * 96), nn.Linear(96, 16)
        self.register_buffer("pairs", torch.arange(25).reshape(5, 5) % 9)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 5, 16] to the same shape."""
        query, key, value = self.qkv(x).reshape(-1, 5, 3, 12, 8).permute(2, 0, 3, 1, 4).unbind(0)
        scores = query @ key.transpose(-2, -1) + self.biases[self.pairs].permute(2, 0, 1)
        return self.out((scores.softmax(-1) @ value).transpose(1, 2).reshape(-1, 5, 96))


def test_heads_that_have_biases_round_by_their_channels() -> None:
    dyn = dc.dynamize(Biased(), "dsnet(gate=False)", torch.randn(2, 5, 16))
    assert [one.sizes for one in dyn.program.sized.values()] == [(3, 6, 9, 12)]


@pytest.mark.parametrize(
    ("per", "choices"),
    [
        ("model", {"width": ["stem.0.0", "stage1.0.conv1.0", "stage2.0.conv1.0", "stage2.0.conv2.0"]}),
        (
            "stage",
            {
                "width.stage0": ["stem.0.0", "stage1.0.conv1.0", "stage1.1.conv1.0"],
                "width.stage1": ["stage2.0.conv1.0", "stage2.0.conv2.0", "stage2.1.conv1.0"],
            },
        ),
        (
            "dim",
            {
                "width.stem.0.0.weight[0]": ["stem.0.0"],
                "width.stage2.1.conv1.0.weight[0]": ["stage2.1.conv1.0"],
            },
        ),
    ],
)
def test_who_decides(per: str, choices: dict[str, list[str]]) -> None:
    dyn = subject(handmade.resnet).dynamic(per=per)
    assert len(dyn.choices) == {"model": 1, "stage": 2, "dim": 6}[per]
    assert set(choices) <= set(dyn.choices)
    for choice, layers in choices.items():
        owned = {name for name, sized in dyn.program.sized.items() if sized.choice == choice}
        assert {f"{layer}.weight[0]" for layer in layers} <= owned
    (plan,) = dyn.plans
    assert {site.name: site.choice for site in plan.sites} == {
        n: s.choice for n, s in dyn.program.sized.items()
    }


def test_labels_and_ends_of_a_choice() -> None:
    (choice,) = subject(handmade.plain_cnn).dynamic(f"dsnet({FINE}, ratios=[0.75, 0.3])").choices.values()
    assert choice.labels == ("0.3", "0.75", "1")
    assert (choice.smallest, choice.full) == ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0))


EMBEDDING = "set embedding=True to slice it"


class Unread(nn.Module):
    """Six channels of which four are read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x)[:, :4].mean((2, 3)))


def unread() -> tuple[nn.Module, Tensor]:
    return Unread(), torch.randn(2, 3, 5, 5)


@pytest.mark.parametrize(
    ("make", "fields", "name", "reason"),
    [
        (handmade.headless, FINE, "stage2.0.conv2.1.weight", "it is part of the model's output"),
        (handmade.bert_like, FINE, "classifier.bias", "it is part of the model's output"),
        (handmade.vit, FINE, "cls_token[2]", f"a residual stream under layer norm: {EMBEDDING}"),
        (handmade.decoder, FINE, "embed.weight[1]", f"a residual stream under mean: {EMBEDDING}"),
        (
            handmade.vit,
            FINE,
            "blocks.0.qkv.weight[0].1",
            "it is multiplied with blocks.0.qkv.weight[0].0, which moves instead",
        ),
        (handmade.resnet, f"{FINE}, include=stage1", "stem.0.0.weight[0]", "not included by 'stage1'"),
        (handmade.resnet, f"{FINE}, exclude=stem", "stem.0.0.weight[0]", "excluded by 'stem'"),
        (
            handmade.depthwise_se,
            "divisor=8, minimum=8",
            "0.0.weight[0]",
            "8 positions leave nothing to choose with divisor 8, minimum 8",
        ),
        (unread, FINE, "conv.weight[0].1", "nothing reads it: specialized networks leave it out"),
    ],
)
def test_rejections_say_why(make: Make, fields: str, name: str, reason: str) -> None:
    (plan,) = subject(make).dynamic(f"dsnet(gate=False, {fields})").plans
    assert {r.name: r.reason for r in plan.rejections}[name] == reason


def test_rejected_streams_name_the_line_that_normalizes() -> None:
    (plan,) = subject(handmade.vit).dynamic(ALL).plans
    (stream,) = (r for r in plan.rejections if r.name == "cls_token[2]")
    assert stream.line.endswith("x = x + self.attend(self.norm1(x))")


def test_nothing_to_slice_lists_every_reason() -> None:
    with pytest.raises(dc.NoSiteError) as caught:
        subject(handmade.multi_output).dynamic(ALL)
    assert "finds no place to act on in this model" in str(caught.value)
    assert "  - second.1.bias: it is part of the model's output" in str(caught.value)


def test_planning_reads_only() -> None:
    one = subject(handmade.vit)
    slicing, before = parse_spec(ALL), one.program.fingerprint
    facts = analyze(one.program)
    plans = [slicing.plan(one.program, facts) for _ in range(2)]
    assert (plans[0], plans[0]) == (plans[1], one.dynamic(ALL).plans[0])
    assert one.program.fingerprint == before


# -- policies and routes ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet() -> dc.DynamicModel:
    return subject(handmade.resnet).dynamic(f"dsnet({FINE}, per=dim)")


def test_full_and_smallest(resnet: dc.DynamicModel) -> None:
    x = torch.randn(2, 3, 8, 8)
    assert set(map(tuple, columns(resnet.run(x, policy=dc.Full())[1]).values())) == {(3, 3)}
    assert set(map(tuple, columns(resnet.run(x, policy=dc.Smallest())[1]).values())) == {(0, 0)}


def test_sampled_is_the_same_for_the_same_seed_and_leaves_generators_alone(resnet: dc.DynamicModel) -> None:
    x = torch.randn(3, 3, 8, 8)
    state = torch.get_rng_state()
    drawn = [columns(resnet.run(x, policy=dc.Sampled(seed))[1]) for seed in range(8)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert drawn == [columns(resnet.run(x, policy=dc.Sampled(seed))[1]) for seed in range(8)]
    assert all(len(set(rows)) == 1 for route in drawn for rows in route.values())
    assert {rows[0] for route in drawn for rows in route.values()} == {0, 1, 2, 3}
    assert len({tuple(rows[0] for rows in route.values()) for route in drawn}) > 6


def test_sampled_depends_on_the_choice_and_not_on_its_place(resnet: dc.DynamicModel) -> None:
    """As on another process that holds the choices in another order, or fewer of them."""
    some = subject(handmade.resnet).dynamic(f"dsnet({FINE}, per=dim, include=stage2)")
    x = torch.randn(2, 3, 8, 8)
    everything, part = (columns(dyn.run(x, policy=dc.Sampled(5))[1]) for dyn in (resnet, some))
    assert part == {name: everything[name] for name in part}


def test_sampled_per_sample_differs_between_rows(resnet: dc.DynamicModel) -> None:
    x = torch.randn(8, 3, 8, 8)
    drawn = columns(resnet.run(x, policy=dc.Sampled(0, per_sample=True))[1])
    assert all(len(set(rows)) > 1 for rows in drawn.values())


def test_a_choice_without_a_gate_runs_in_full(resnet: dc.DynamicModel) -> None:
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(resnet(x), resnet.run(x, policy=dc.Full())[0])
        assert torch.equal(resnet(x), subject(handmade.resnet).module(x))


def test_one_row_serves_the_whole_batch(resnet: dc.DynamicModel) -> None:
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        one, route = resnet.run(x, policy=dc.Forced(resnet.route(1)))
        each, _ = resnet.run(x, policy=dc.Forced(resnet.route(1, rows=3)))
    assert torch.equal(one, each)
    assert all(rows.shape == (3, 4) for rows in route.values())


@pytest.mark.parametrize("make", [handmade.resnet, handmade.vit])
def test_any_batch_size(make: Make) -> None:
    dyn = subject(make).dynamic(ALL)
    x = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        whole, _ = dyn.run(x, policy=dc.Forced(dyn.route(1)))
        one, _ = dyn.run(x[2:3], policy=dc.Forced(dyn.route(1)))
        assert relative(whole[2:3], one) <= TOLERANCE
        for policy in (dc.Full(), dc.Smallest(), dc.Sampled(0, per_sample=True), dc.Forced(dyn.route(1))):
            none, route = dyn.run(x[:0], policy=policy)
            assert none.shape == (0, 5)
            assert [rows.shape for rows in route.values()] == [(0, 4)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.ones(2, 4), "is outside its domain"),
        (torch.full((2, 4), 0.25), "is outside its domain"),
        (torch.zeros(2, 4), "is outside its domain"),
        (torch.eye(3)[:2], r"takes rows \[B, 4\], got shape \[2, 3\]"),
        (torch.eye(4)[0], r"takes rows \[B, 4\], got shape \[4\]"),
        (torch.eye(4)[:3], "has 3 rows for choice 'width', the batch has 2"),
    ],
)
def test_routes_that_do_not_fit(rows: Tensor, message: str) -> None:
    dyn = subject(handmade.plain_cnn).dynamic(ALL)
    with pytest.raises(dc.RouteError, match=message):
        dyn.run(torch.randn(2, 3, 8, 8), policy=dc.Forced({"width": rows}))


def test_unknown_choices_are_named(resnet: dc.DynamicModel) -> None:
    route = {"widht": torch.eye(4)[:1]}
    with pytest.raises(dc.RouteError, match=r"no choice is named \['widht'\]"):
        resnet.run(torch.randn(2, 3, 8, 8), policy=dc.Forced(route))
    with pytest.raises(dc.RouteError, match=r"no choice is named \['widht'\]"):
        dc.specialize(resnet, route)
    with pytest.raises(dc.RouteError, match=r"no choice is named \['widht'\]"):
        resnet.route({"widht": 0})


def test_a_second_application_takes_what_is_left() -> None:
    dyn = subject(handmade.resnet).dynamic(
        [f"dsnet({FINE}, include=stage2)", f"dsnet({FINE}, name=rest, per=dim)"]
    )
    assert next(iter(dyn.choices)) == "width"
    assert {name for name in dyn.choices if name != "width"} == {
        f"rest.{layer}.weight[0]" for layer in ("stem.0.0", "stage1.0.conv1.0", "stage1.1.conv1.0")
    }
    reasons = {r.name: r.reason for r in dyn.plans[1].rejections}
    assert reasons["stage2.0.conv1.0.weight[0]"] == "choice 'width' sizes it already"


@pytest.mark.parametrize("swapped", [False, True])
def test_two_passes_that_meet_in_one_tensor(swapped: bool) -> None:
    """The norms on concatenated channels are sized by both passes, whichever comes first."""
    both = [f"dsnet({FINE}, include=stem)", f"dsnet({FINE}, exclude=stem, name=rest)"]
    dyn, x = source("dense").dynamic(both[::-1] if swapped else both), CASES["dense"].inputs
    assert not [name for name in dyn.state_dict() if "dyn.statistics" in name and "norm3" in name]
    for stem, rest, widths in ((1, 0, (3, 1, 1, 2)), (0, 3, (2, 4, 5, 7)), (3, 1, (6, 2, 3, 4))):
        route = dyn.route({"width": stem, "rest": rest})
        cut = oracles.Dense.cut(*widths)
        static = narrowed(oracles.Dense(*widths), state_of(source("dense").module), cut).eval()
        with torch.no_grad():
            assert relative(static(x), dyn.run(x, policy=dc.Forced(route))[0]) <= TOLERANCE
            assert relative(static(x), dc.specialize(dyn, route)(x)) <= TOLERANCE
        assert float(dyn.macs(route)) == count_macs(lambda static=static: static(x[:1]))


def test_names_of_choices_must_differ() -> None:
    with pytest.raises(dc.SpecError, match="there is a choice named 'width' already"):
        subject(handmade.resnet).dynamic([f"dsnet({FINE}, include=stage2)", f"dsnet({FINE}, include=stage1)"])
