"""LC-Net's channels against networks from which these channels are removed by hand, whichever they are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dyncompile as dc
from dyncompile.verify import count_macs
from tests import gating_nets as nets
from tests import oracles
from tests.nets import randomize
from tests.oracles import Cut, Positions, cut_tensor, narrowed, positions_of, state_of, within
from tests.support import Subject, relative, snapshot, undecided

TOLERANCE = 1e-5
CHANNELS = "lcnet(layers=False)"
ROWS = 5
Kept = Mapping[str, Sequence[int]]
"""Choice, without its prefix -> positions that are on."""
Columns = Callable[[int], list[int]]
"""Position of a dim -> where it lies in an axis."""


@dataclass(frozen=True)
class Case:
    """A network whose channels are removed by hand.

    Attributes:
        build: the network; called with what `narrow` gives, the one with fewer channels.
        inputs: of `ROWS` samples.
        sizes: positions of every dim that can be gated, by choice.
        narrow: kept positions -> (a network of that many, what it takes of every tensor).
        readers: choice -> tensors that read the dim along axis 1, and the columns of position p in each.
        queries: the same along axis 0 of what makes attention's queries: where products of two values are
            summed over a dim, one of the two is multiplied.
        exclude: dims that are left alone, as the pass takes it.
        blocks: sizes of blocks to try; at others a dim that was excluded before moves instead.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    sizes: Mapping[str, int]
    narrow: Callable[[Kept], tuple[nn.Module, Cut]]
    readers: Mapping[str, Mapping[str, Columns]]
    queries: Mapping[str, Mapping[str, Columns]] = field(default_factory=dict[str, Mapping[str, Columns]])
    exclude: str = ""
    blocks: tuple[int, ...] = (1, 2, 4)


def itself(p: int) -> list[int]:
    return [p]


def shifted(by: int) -> Columns:
    return lambda p: [by + p]


def head(p: int) -> list[int]:
    return within([p], 4)


def fused(kept: Sequence[int], heads: int) -> list[int]:
    """Rows of queries, keys and values of the kept heads in one projection."""
    return [part * heads * 4 + row for part in range(3) for row in within(kept, 4)]


def _images() -> tuple[Tensor, ...]:
    return (torch.randn(ROWS, 3, 8, 8),)


def _cnn(kept: Kept) -> tuple[nn.Module, Cut]:
    cut: dict[str, tuple[Positions, ...]] = {}
    for name in "abc":
        p = kept[f"{name}.conv1"]
        cut |= {f"{name}.conv1.": (p,), f"{name}.norm1.": (p,), f"{name}.conv2.weight": (None, p)}
    return nets.Cnn(*(len(kept[f"{name}.conv1"]) for name in "abc")), cut


def _inverted(kept: Kept) -> tuple[nn.Module, Cut]:
    h, s = kept["block.expand"], kept["block.squeeze"]
    return nets.Inverted(len(h), len(s)), {
        "block.expand.": (h,), "block.norm1.": (h,), "block.depthwise.": (h,), "block.norm2.": (h,),
        "block.squeeze.weight": (s, h), "block.squeeze.bias": (s,),
        "block.excite.weight": (h, s), "block.excite.bias": (h,), "block.project.weight": (None, h),
    }  # fmt: skip


def _pre_norm(kept: Kept) -> tuple[nn.Module, Cut]:
    cut: dict[str, tuple[Positions, ...]] = {}
    for i, (heads, hidden) in enumerate(((3, 10), (4, 7))):
        h, m, at = kept[f"blocks.{i}.attn.qkv.0"], kept[f"blocks.{i}.mlp.fc1"], f"blocks.{i}"
        first = m if i == 0 else [*m, *(hidden + p for p in m)]  # the second MLP is gated
        cut |= {f"{at}.attn.qkv.": (fused(h, heads),), f"{at}.attn.proj.weight": (None, within(h, 4))}
        cut |= {f"{at}.mlp.fc1.": (first,), f"{at}.mlp.fc2.weight": (None, m)}
    counts = [len(positions) for positions in kept.values()]
    return nets.PreNorm((counts[0], counts[2]), (counts[1], counts[3])), cut


def _post_norm(kept: Kept) -> tuple[nn.Module, Cut]:
    cut: dict[str, tuple[Positions, ...]] = {}
    for i in (0, 1):
        h, m = within(kept[f"blocks.{i}.q.0"], 4), kept[f"blocks.{i}.fc1"]
        cut |= {f"blocks.{i}.{name}.": (h,) for name in "qkv"}
        cut |= {f"blocks.{i}.o.weight": (None, h)}
        cut |= {f"blocks.{i}.fc1.": (m,), f"blocks.{i}.fc2.weight": (None, m)}
    net: Any = nets.PostNorm()
    for i in (0, 1):
        net.blocks[i] = nets.PostNormBlock(len(kept[f"blocks.{i}.q.0"]), len(kept[f"blocks.{i}.fc1"]))
    return net, cut


def _windows(kept: Kept) -> tuple[nn.Module, Cut]:
    h, m = kept["attn.qkv.0"], kept["mlp.fc1"]
    return nets.Windows(len(h), len(m)), {
        "attn.qkv.": (fused(h, 2),), "attn.proj.weight": (None, within(h, 4)),
        "mlp.fc1.": (m,), "mlp.fc2.weight": (None, m),
    }  # fmt: skip


def _sequence_first(kept: Kept) -> tuple[nn.Module, Cut]:
    one, two = kept["first.fc1"], kept["second.fc1"]
    return nets.SequenceFirst((len(one), len(two))), {
        "first.fc1.": (one,), "first.fc2.weight": (None, one),
        "second.fc1.": (two,), "second.fc2.weight": (None, two),
    }  # fmt: skip


def _branches(kept: Kept) -> tuple[nn.Module, Cut]:
    one, two = kept["left"], kept["right"]
    beside = [*one, *(5 + p for p in two)]
    cut: Cut = {"left.": (one,), "right.": (two,), "mix.weight": (None, beside)}
    return nets.Branches(len(one), len(two)), cut


def _groups(kept: Kept) -> tuple[nn.Module, Cut]:
    groups, fan_in, fan_out = (
        kept.get("up.0", range(4)),
        kept.get("up.1", range(3)),
        kept.get("grouped.1", range(2)),
    )
    wide, narrow = [g * 3 + i for g in groups for i in fan_in], [g * 2 + o for g in groups for o in fan_out]
    return nets.Groups(len(groups), len(fan_in), len(fan_out)), {
        "up.": (wide,), "norm.": (wide,), "down.weight": (None, narrow),
        "grouped.weight": (narrow, fan_in), "grouped.bias": (narrow,),
    }  # fmt: skip


def _decoder(kept: Kept) -> tuple[nn.Module, Cut]:
    heads, share, h = kept.get("q.0", range(4)), kept.get("q.1", range(2)), kept["gate"]
    keys, queries = within(heads, 4), within([head * 2 + s for head in heads for s in share], 4)
    return oracles.Decoder(12, len(heads), len(share), len(h)), {
        "q.": (queries,), "k.": (keys,), "v.": (keys,), "o.": (None, queries),
        "gate.": (h,), "up.": (h,), "down.": (None, h),
    }  # fmt: skip


def _head_dims(kept: Kept) -> tuple[nn.Module, Cut]:
    d, m = kept["attn.qkv.1"], kept["mlp.fc1"]
    rows = [part * 8 + head * 4 + i for part in range(3) for head in (0, 1) for i in d]
    return nets.Windows(2, len(m), len(d)), {
        "attn.qkv.": (rows,), "attn.proj.weight": (None, [head * 4 + i for head in (0, 1) for i in d]),
        "mlp.fc1.": (m,), "mlp.fc2.weight": (None, m),
    }  # fmt: skip


CASES = {
    "cnn": Case(
        nets.Cnn,
        _images,
        {"a.conv1": 12, "b.conv1": 10, "c.conv1": 9},
        _cnn,
        {f"{name}.conv1": {f"{name}.conv2.weight": itself} for name in "abc"},
    ),
    "squeeze and excite": Case(
        nets.Inverted,
        _images,
        {"block.expand": 14, "block.squeeze": 5},
        _inverted,
        {
            "block.expand": {"block.squeeze.weight": itself, "block.project.weight": itself},
            "block.squeeze": {"block.excite.weight": itself},
        },
    ),
    "pre-norm": Case(
        nets.PreNorm,
        _images,
        {
            "blocks.0.attn.qkv.0": 3,
            "blocks.0.mlp.fc1": 10,
            "blocks.1.attn.qkv.0": 4,
            "blocks.1.mlp.fc1": 7,
        },
        _pre_norm,
        {f"blocks.{i}.attn.qkv.0": {f"blocks.{i}.attn.proj.weight": head} for i in (0, 1)}
        | {f"blocks.{i}.mlp.fc1": {f"blocks.{i}.mlp.fc2.weight": itself} for i in (0, 1)},
    ),
    "post-norm": Case(
        nets.PostNorm,
        lambda: (torch.randint(11, (ROWS, 6)), torch.tensor([6, 3, 1, 4, 6])),
        {"blocks.0.q.0": 3, "blocks.0.fc1": 10, "blocks.1.q.0": 3, "blocks.1.fc1": 10},
        _post_norm,
        {f"blocks.{i}.q.0": {f"blocks.{i}.o.weight": head} for i in (0, 1)}
        | {f"blocks.{i}.fc1": {f"blocks.{i}.fc2.weight": itself} for i in (0, 1)},
    ),
    "windows": Case(
        nets.Windows,
        lambda: (torch.randn(ROWS, 4, 4, 6),),
        {"attn.qkv.0": 2, "mlp.fc1": 9},
        _windows,
        {"attn.qkv.0": {"attn.proj.weight": head}, "mlp.fc1": {"mlp.fc2.weight": itself}},
        blocks=(1,),
    ),
    "head dims": Case(
        nets.Windows,
        lambda: (torch.randn(ROWS, 4, 4, 6),),
        {"attn.qkv.1": 4, "mlp.fc1": 9},
        _head_dims,
        {
            "attn.qkv.1": {"attn.proj.weight": lambda d: [d, 4 + d]},
            "mlp.fc1": {"mlp.fc2.weight": itself},
        },
        {"attn.qkv.1": dict.fromkeys(("attn.qkv.weight", "attn.qkv.bias"), lambda d: [d, 4 + d])},
        exclude="0..0$",
    ),
    "groups": Case(
        nets.Groups,
        _images,
        {"up.0": 4},
        _groups,
        {"up.0": {"down.weight": lambda g: [2 * g, 2 * g + 1]}},
        blocks=(1, 2),
    ),
    "within groups": Case(
        nets.Groups,
        _images,
        {"up.1": 3, "grouped.1": 2},
        _groups,
        {
            "up.1": {"grouped.weight": itself},
            "grouped.1": {"down.weight": lambda o: [2 * g + o for g in range(4)]},
        },
        exclude="0..0$",
        blocks=(1, 2),
    ),
    "key heads": Case(
        oracles.Decoder,
        lambda: (torch.randint(11, (ROWS, 6)),),
        {"q.0": 4, "gate": 20},
        _decoder,
        {"q.0": {"o.weight": lambda h: within([2 * h, 2 * h + 1], 4)}, "gate": {"down.weight": itself}},
    ),
    "query heads": Case(
        oracles.Decoder,
        lambda: (torch.randint(11, (ROWS, 6)),),
        {"q.1": 2, "gate": 20},
        _decoder,
        {
            "q.1": {"o.weight": lambda s: within([2 * h + s for h in range(4)], 4)},
            "gate": {"down.weight": itself},
        },
        exclude="0..0$",
        blocks=(1,),
    ),
    "sequence first": Case(
        nets.SequenceFirst,
        lambda: (torch.randn(ROWS, 5, 6),),
        {"first.fc1": 10, "second.fc1": 7},
        _sequence_first,
        {f"{name}.fc1": {f"{name}.fc2.weight": itself} for name in ("first", "second")},
    ),
    "concatenation": Case(
        nets.Branches,
        _images,
        {"left": 5, "right": 7},
        _branches,
        {"left": {"mix.weight": itself}, "right": {"mix.weight": shifted(5)}},
    ),
}


@cache
def source(name: str) -> Subject:
    """The network of a case; shared, so nobody may change it."""
    torch.manual_seed(5)
    with torch.no_grad():
        net = randomize(CASES[name].build()).eval()
    return Subject(net, CASES[name].inputs(), {})


@cache
def dynamic(name: str, spec: str = CHANNELS) -> dc.DynamicModel:
    """Shared, in evaluation mode: nobody may change it."""
    return source(name).dynamic(spec, exclude=CASES[name].exclude)


def alone(name: str, i: int) -> tuple[Tensor, ...]:
    return tuple(x[i : i + 1] for x in source(name).args)


Gains = dict[str, list[float]]
"""Choice, without its prefix -> the gain of every position, 0 where it is off."""


def drawn(name: str, seed: int, block: int = 1) -> Gains:
    """Random gains, of which some are 0 and not all, equal within a block."""
    random = torch.Generator().manual_seed(seed)
    out: Gains = {}
    for choice, size in CASES[name].sizes.items():
        columns = -(-size // block)
        on = torch.rand(columns, generator=random) < 0.5
        on[int(torch.randint(columns, (1,), generator=random))] = True
        values = on * (0.25 + 1.25 * torch.rand(columns, generator=random))
        out[choice] = values.repeat_interleave(block)[:size].tolist()
    return out


def off(name: str, of: str | None = None) -> Gains:
    """All of one choice off, or of every choice."""
    sizes = CASES[name].sizes
    return {choice: [float(of not in (None, choice))] * size for choice, size in sizes.items()}


def route(gains: Sequence[Gains], block: int = 1) -> dict[str, Tensor]:
    return {f"channels.{name}": torch.tensor([one[name][::block] for one in gains]) for name in gains[0]}


def kept(gains: Gains, least: int = 1) -> dict[str, list[int]]:
    """Positions that are on; where all are off so many stay."""
    on = {name: [p for p, gain in enumerate(values) if gain > 0] for name, values in gains.items()}
    return {name: found or list(range(least)) for name, found in on.items()}


def by_hand(
    name: str, gains: Gains, least: int = 1, tensors: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """The network without what is off, whose readers find the rest multiplied.

    It makes no difference whether an input of a linear map is multiplied or its weights.
    """
    state = {key: tensor.clone() for key, tensor in (tensors or state_of(source(name).module)).items()}
    for axis, table in ((1, CASES[name].readers), (0, CASES[name].queries)):
        for choice, tensors_of_it in table.items():
            for tensor, columns in tensors_of_it.items():
                for p, gain in enumerate(gains[choice]):
                    state[tensor].transpose(0, axis)[columns(p)] *= gain
    net, cut = CASES[name].narrow(kept(gains, least))
    return narrowed(net, state, cut).eval()


# -- outputs and costs -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_what_is_gated(name: str) -> None:
    found = {choice: one.width for choice, one in dynamic(name).choices.items()}
    assert found == {f"channels.{choice}": size for choice, size in CASES[name].sizes.items()}


@pytest.mark.parametrize("execution", ["sparse", "dense"])
@pytest.mark.parametrize("name", CASES)
def test_rows_of_different_channels_run_together(name: str, execution: Any) -> None:
    gains = [*(drawn(name, seed) for seed in range(ROWS - 1)), off(name, next(iter(CASES[name].sizes)))]
    policy = dc.Forced(route(gains))
    with torch.no_grad():
        expected = torch.cat([by_hand(name, one)(*alone(name, i)) for i, one in enumerate(gains)])
        actual = dynamic(name).record(*source(name).args, policy=policy, execution=execution).output
    assert relative(expected, actual) <= TOLERANCE
    assert relative(expected, source(name).expected()) > 0.01


@pytest.mark.parametrize(("name", "block"), [(name, n) for name, one in CASES.items() for n in one.blocks])
def test_one_row_is_the_network_without_these_channels(name: str, block: int) -> None:
    """Outputs, what torch counts, and what a specialized network holds."""
    sizes = CASES[name].sizes
    dyn = dynamic(name, f"lcnet(layers=False, block={block})")
    gated = {choice.removeprefix("channels.") for choice in dyn.choices}
    assert gated == {choice for choice, size in sizes.items() if size > block}
    x = alone(name, 0)
    with torch.no_grad():
        for seed in range(3):
            gains = drawn(name, seed, block)
            gains |= {choice: [1.0] * sizes[choice] for choice in sizes if choice not in gated}
            way = route([gains], block)
            way = {choice: way[choice] for choice in dyn.choices}
            static, expected = dc.specialize(dyn, way), by_hand(name, gains)
            assert relative(expected(*x), dyn.run(*x, policy=dc.Forced(way))[0]) <= TOLERANCE
            assert relative(expected(*x), static(*x)) <= TOLERANCE
            counted = count_macs(partial(expected, *x))
            assert dyn.macs(way).tolist() == [counted]
            assert count_macs(partial(dyn.run, *x, policy=dc.Forced(way))) == counted
            assert count_macs(partial(static, *x)) == counted
            shapes = {key: value.shape for key, value in expected.state_dict().items()}
            found = {key: value.shape for key, value in static.state_dict().items()}
            assert {key: shape for key, shape in found.items() if not key.startswith("dyn.")} == {
                key: shape for key, shape in shapes.items() if "num_batches" not in key
            }


@pytest.mark.parametrize("name", CASES)
def test_a_batch_runs_what_any_of_its_rows_keeps(name: str) -> None:
    gains = [drawn(name, seed) for seed in range(ROWS)]
    union = {choice: [max(one[choice][p] for one in gains) for p in range(n)]
             for choice, n in CASES[name].sizes.items()}  # fmt: skip
    dyn, way = dynamic(name), route(gains)
    counted = count_macs(partial(dyn.run, *source(name).args, policy=dc.Forced(way)))
    assert counted == ROWS * float(dyn.macs(route([union])))
    assert counted >= float(dyn.macs(way).sum())
    pair = route([gains[0]] * ROWS)
    assert count_macs(partial(dyn.run, *source(name).args, policy=dc.Forced(pair))) == float(
        dyn.macs(pair).sum()
    )


@pytest.mark.parametrize(("name", "block"), [(name, 1) for name in CASES] + [("cnn", 4), ("cnn", 7)])
def test_where_all_are_off_one_block_stays_and_adds_nothing(name: str, block: int) -> None:
    dyn, x = dynamic(name, f"lcnet(layers=False, block={block})"), source(name).args
    gains = off(name)
    way = route([gains], block)
    with torch.no_grad():
        expected = by_hand(name, gains, least=block)
        assert relative(expected(*x), dyn.run(*x, policy=dc.Forced(way))[0]) <= TOLERANCE
        assert relative(expected(*x), dyn.run(*x, policy=dc.Smallest())[0]) <= TOLERANCE
        static = dc.specialize(dyn, way)
        assert relative(expected(*x), static(*x)) <= TOLERANCE
    counted = count_macs(partial(expected, *alone(name, 0)))
    assert dyn.macs(way).tolist() == [counted] == [count_macs(partial(static, *alone(name, 0)))]


def test_macs_of_the_cnn_by_arithmetic() -> None:
    """Images of 8 x 8; the second block halves both sides. Blocks of four: 12 = 4 + 4 + 4, 10 = 4 + 4 + 2."""
    dyn = dynamic("cnn", "lcnet(layers=False, block=4)")
    rest = 3 * 8 * 9 * 64 + 8 * 16 * 16 + 16 * 5
    way = {
        "channels.a.conv1": torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.0, 0.0]]),
        "channels.b.conv1": torch.tensor([[0.0, 0.0, 0.1], [1.0, 0.0, 1.0]]),
        "channels.c.conv1": torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 1.0]]),
    }
    expected = [
        rest + 8 * (2 * 8 * 9 * 64) + 2 * (8 * 9 * 16 + 16 * 9 * 16) + 4 * (2 * 16 * 9 * 16),
        rest + 4 * (2 * 8 * 9 * 64) + 6 * (8 * 9 * 16 + 16 * 9 * 16) + 5 * (2 * 16 * 9 * 16),
    ]
    assert dyn.macs(way).tolist() == expected


@pytest.mark.parametrize("name", CASES)
def test_what_is_off_is_not_read(name: str) -> None:
    """Neither the weights that make these channels nor those that read them."""
    gains = drawn(name, 1)
    dyn, x = copy.deepcopy(dynamic(name)), source(name).args
    _, cut = CASES[name].narrow(kept(gains))
    with torch.no_grad():
        for key, parameter in dyn.named_parameters():
            read = torch.ones_like(parameter, dtype=torch.bool)
            for axis, positions in enumerate(positions_of(cut, key)[: parameter.dim()]):
                if positions is not None:
                    elsewhere = [p for p in range(parameter.shape[axis]) if p not in positions]
                    read.index_fill_(axis, torch.tensor(elsewhere, dtype=torch.int64), False)
            parameter[~read] = float("nan")
        expected = by_hand(name, gains)(*x)
        actual, _ = dyn.run(*x, policy=dc.Forced(route([gains])))
        assert relative(expected, actual) <= TOLERANCE
        assert not dyn.run(*x, policy=dc.Full())[0].isfinite().any()


# -- training ----------------------------------------------------------------------------------------


def test_statistics_of_channels_that_are_off_stay_as_they_are() -> None:
    gains = drawn("cnn", 2)
    dyn, (images,) = copy.deepcopy(dynamic("cnn")).train(), source("cnn").args
    net, before = by_hand("cnn", gains).train(), snapshot(dyn)
    with torch.no_grad():
        assert relative(net(images), dyn.run(images, policy=dc.Forced(route([gains])))[0]) <= TOLERANCE
    _, cut = CASES["cnn"].narrow(kept(gains))
    own = dict(dyn.named_buffers())
    for key, buffer in net.named_buffers():
        assert relative(buffer, cut_tensor(own[key], positions_of(cut, key))) <= TOLERANCE, key
        for positions in positions_of(cut, key)[: own[key].dim()]:
            off = [p for p in range(len(own[key])) if p not in (positions or ())]
            assert torch.equal(own[key][off], before[key][off]), key
            assert not torch.equal(own[key], before[key]), key


def test_gradients_of_gains_are_those_of_what_readers_find() -> None:
    """Those of gains at 0 as well: a channel that is off has to be able to come back."""
    dyn, net = copy.deepcopy(dynamic("cnn")).double(), copy.deepcopy(source("cnn").module).double()
    assert isinstance(net, nets.Cnn)
    images = source("cnn").args[0].double()
    table = route([drawn("cnn", seed) for seed in range(ROWS)])
    hand = {choice: rows.double().requires_grad_() for choice, rows in table.items()}

    def block(one: nets.Block, x: Tensor, rows: Tensor) -> Tensor:
        hidden = F.relu(one.norm1(one.conv1(x))) * rows[:, :, None, None]
        return F.relu(one.norm2(one.conv2(hidden)) + (x if one.down is None else one.down(x)))

    y = net.norm(net.conv(images))
    for name, one in (("a", net.a), ("b", net.b), ("c", net.c)):
        y = block(one, y, hand[f"channels.{name}.conv1"])
    expected = torch.autograd.grad(net.head(y.mean((2, 3))).square().sum(), list(hand.values()))
    ours = {choice: rows.double().requires_grad_() for choice, rows in table.items()}
    output = dyn.record(images, policy=dc.Forced(ours), execution="dense").output
    actual = torch.autograd.grad(output.square().sum(), list(ours.values()))
    for choice, mine, theirs in zip(table, expected, actual, strict=True):
        assert (mine[table[choice] == 0] != 0).any()
        assert torch.allclose(mine, theirs)


def test_the_gradient_of_the_cost_is_what_a_channel_costs() -> None:
    way = route([drawn("cnn", seed) for seed in range(2)])
    way["channels.a.conv1"].requires_grad_()
    dynamic("cnn").macs(way).sum().backward()
    found = way["channels.a.conv1"].grad
    assert found is not None
    assert torch.equal(found, torch.full((2, 12), 2.0 * 8 * 9 * 64))


# -- decision nets -----------------------------------------------------------------------------------


def test_gains_come_from_the_input_of_their_block() -> None:
    """Layers and channels at once, row by row, with every decision worked out by hand."""
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(8))
    dyn = undecided(dynamic("cnn", "lcnet"), (images,))
    with torch.no_grad():
        record = dyn.record(images, policy=dc.Learned())
        net, state = copy.deepcopy(source("cnn").module), state_of(source("cnn").module)
        assert isinstance(net, nets.Cnn)
        outputs: list[Tensor] = []
        for i in range(8):
            y = net.norm(net.conv(images[i : i + 1]))
            for name, block in (("a", net.a), ("b", net.b), ("c", net.c)):
                pooled = y.mean((2, 3))
                gain, scale = (
                    F.linear(
                        pooled,
                        dyn.get_parameter(f"dyn.gates.{choice}.head.weight"),
                        dyn.get_parameter(f"dyn.gates.{choice}.head.bias"),
                    ).clamp(0, 1)
                    for choice in (f"layer.{name}", f"channels.{name}.conv1")
                )
                assert torch.allclose(record.route[f"layer.{name}"][i], gain[0], atol=1e-5)
                assert torch.allclose(record.route[f"channels.{name}.conv1"][i], scale[0], atol=1e-5)
                block.conv2.weight.copy_(state[f"{name}.conv2.weight"] * scale[0][:, None, None])
                y = block.part()(y, float(gain))
            outputs.append(net.behind(y, y))
    assert relative(torch.cat(outputs), record.output) <= TOLERANCE
    assert all(0 < float((rows == 0).float().mean()) < 1 for rows in record.route.values())


class Ending(nn.Module):
    """A block with a projection, and nothing but a pooled classifier behind it: its sum can be gated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.conv1, self.norm1 = nn.Conv2d(6, 7, 3, 1, 1, bias=False), nn.BatchNorm2d(7)
        self.conv2, self.norm2 = nn.Conv2d(7, 9, 3, 1, 1, bias=False), nn.BatchNorm2d(9)
        self.shortcut = nn.Conv2d(6, 9, 1, bias=False)
        self.head = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(F.relu(self.branch(x) + self.shortcut(x)).mean((2, 3)))

    def branch(self, x: Tensor, gains: Tensor | float = 1.0) -> Tensor:
        return self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))) * gains))

    def by_hand(self, x: Tensor, layer: float, inner: Tensor, outer: Tensor) -> Tensor:
        """One sample; gains of the branch, of what is inside it, and of its sum with the shortcut."""
        x = F.relu(self.stem(x))
        total = self.shortcut(x) + (layer * self.branch(x, inner[:, None, None]) if layer else 0)
        return self.head((F.relu(total) * outer[:, None, None]).mean((2, 3)))


@torch.no_grad()
@pytest.mark.parametrize("seed", range(4))
def test_rows_that_skip_a_branch_keep_channels_that_others_lack(seed: int) -> None:
    """The channels of a sum are those that any row keeps, though the branch runs for some rows alone."""
    torch.manual_seed(seed)
    net, x = Ending().eval(), torch.randn(ROWS, 3, 6, 6)
    randomize(net)
    dyn = dc.dynamize(net, "lcnet", x).eval()
    inner, outer = "channels.conv1", "channels.conv2"
    (layer,) = (name for name in dyn.choices if name.startswith("layer"))
    assert {inner, outer} <= set(dyn.choices)
    route = {name: torch.bernoulli(torch.full((ROWS, c.width), 0.3)) for name, c in dyn.choices.items()}
    route[layer] = torch.tensor([[0.0], [0.5], [0.0], [1.0], [0.0]])
    found, _ = dyn.run(x, policy=dc.Forced(route))
    hand = [
        net.by_hand(x[i : i + 1], float(route[layer][i]), route[inner][i], route[outer][i])
        for i in range(ROWS)
    ]
    assert relative(found, torch.cat(hand)) < TOLERANCE
