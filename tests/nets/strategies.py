"""How networks are drawn. Widths come from few numbers, so that equal sizes also occur by coincidence."""

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from .attention import KERNELS, PROJECTIONS, REPEATS, ROTARIES, Attention, Multihead
from .blocks import Basic, Block, Bottleneck, Depthwise, Grouped, Inverted, Plain
from .cnn import Cnn, Head
from .layers import ACTIVATIONS, CHANNEL_ATTENTION, NORMS_1D, NORMS_2D
from .mixing import Branches, ConvNext, Dense, Drop, Pool, Shuffle, Upsample
from .net import Net, assemble
from .transformer import Layer, Mlp, Patches, Tokens, Transformer

WIDTHS = st.sampled_from((4, 5, 6, 8, 8, 9, 12, 16))
SMALL = st.sampled_from((2, 3, 4))
SEEDS = st.integers(0, 2**16)
BATCHES = st.sampled_from((2, 3))
FLAGS = st.booleans()
RATES = st.sampled_from((0.0, 0.0, 0.2))
ACTS = st.sampled_from(ACTIVATIONS)
ACTS_1D = st.sampled_from(("relu", "gelu", "silu"))
NORMS = st.sampled_from(("bn", "bn", *NORMS_2D))
CLASSES = st.sampled_from((2, 3, 5, 8, 10))


def networks() -> SearchStrategy[Net]:
    """Draw a small CNN or a small transformer."""
    return st.one_of(cnns(), transformer_nets())


def cnns() -> SearchStrategy[Net]:
    """Draw a CNN on [2..3, 3, 8..16, 8..16] of a stem, one to four blocks and a pooled head."""
    return st.builds(assemble, _cnn_specs(), SEEDS).filter(_alive)


def transformer_nets() -> SearchStrategy[Net]:
    """Draw a transformer on images or ids, of one or two layers."""
    return st.builds(assemble, _transformer_specs(), SEEDS).filter(_alive)


@torch.no_grad()
def _alive(net: Net) -> bool:
    """Whether the output depends on the input: behind a few dead ReLUs no weight would have a gradient."""
    output = net.module.eval()(*net.args, **net.kwargs)
    net.module.train()
    return bool((output[0] - output[1]).abs().max() > 1e-3)


@st.composite
def _cnn_specs(draw: st.DrawFn) -> Cnn:
    strides = draw(st.lists(st.sampled_from((1, 1, 2)), min_size=2, max_size=5).filter(_above_1x1))
    stem = st.builds(Plain, WIDTHS, stride=st.just(strides[0]), norm=NORMS, act=ACTS)
    blocks = st.tuples(*(_strided() if s == 2 else _flat() for s in strides[1:])).filter(_affordable)
    pools, hidden = st.sampled_from(("adaptive", "mean", "max")), st.sampled_from((0, 0, 7))
    head = st.builds(Head, CLASSES, pools, hidden, RATES)
    size = st.tuples(*[st.sampled_from((8, 9, 12, 16))] * 2)
    return draw(st.builds(Cnn, stem, blocks, head, size, BATCHES))


def _above_1x1(strides: Sequence[int]) -> bool:
    """On a map of 1x1 batch norm cannot train at batch 1; the smallest input is 8x8."""
    return strides.count(2) <= 2


def _affordable(blocks: Sequence[Block]) -> bool:
    """Capturing takes about 3 ms per node, so few blocks of many layers; and the map must not grow twice."""
    deep = sum(isinstance(block, (Bottleneck, Inverted, Shuffle, Dense)) for block in blocks)
    return deep <= 2 and sum(isinstance(block, Upsample) for block in blocks) <= 1


def _flat() -> SearchStrategy[Block]:
    dense = st.builds(Dense, SMALL, st.sampled_from((2, 3)), NORMS, ACTS)
    drop = st.builds(Drop, st.just(0.2), FLAGS)
    up = st.builds(Upsample, WIDTHS, st.sampled_from(("nearest", "bilinear", "pixel")))
    transposed = st.builds(Upsample, SMALL, groups=st.sampled_from((1, 2, 4)))
    return st.one_of(*_convolutional(1), dense, drop, st.one_of(up, transposed))


def _strided() -> SearchStrategy[Block]:
    pool = st.builds(Pool, st.sampled_from(("max", "avg", "max3")))
    return st.one_of(*_convolutional(2), pool, pool)


def _convolutional(stride: int) -> list[SearchStrategy[Block]]:
    s = st.just(stride)
    shortcuts, attention = st.sampled_from(("conv", "pool")), st.sampled_from(CHANNEL_ATTENTION)
    kernels, large, hidden = (st.sampled_from(sizes) for sizes in ((1, 3, 5), (3, 5), (8, 12, 18)))
    one_or_two, inner = st.sampled_from((1, 2)), st.sampled_from((1, 2, 3))
    widths = st.lists(SMALL, min_size=2, max_size=3).map(tuple)
    pointwise = st.one_of(st.just(0), WIDTHS)
    return [
        st.builds(Plain, WIDTHS, kernels, s, NORMS, ACTS),
        st.builds(Basic, WIDTHS, s, NORMS, ACTS, shortcuts, FLAGS, RATES),
        st.builds(Bottleneck, WIDTHS, inner, SMALL, s, NORMS, ACTS, attention, shortcuts, RATES),
        st.builds(Grouped, SMALL, SMALL, SMALL, s, NORMS, ACTS),
        st.builds(Depthwise, pointwise, one_or_two, large, s, NORMS, ACTS),
        st.builds(Inverted, WIDTHS, inner, large, s, ACTS, attention, RATES),
        st.builds(Branches, widths, s, NORMS, ACTS, FLAGS),
        st.builds(Shuffle, st.sampled_from((2, 3, 4, 6)), one_or_two, s, ACTS),
        st.builds(ConvNext, WIDTHS, hidden, large, s, FLAGS, FLAGS, RATES),
    ]


@st.composite
def _transformer_specs(draw: st.DrawFn) -> Transformer:
    width = draw(st.sampled_from((8, 12, 12, 16)))
    tokens = st.builds(Tokens, st.sampled_from((8, 11, 12)), st.sampled_from((3, 5, 8)))
    stem = draw(st.one_of(_patches(), tokens))
    text = isinstance(stem, Tokens)
    mask = draw(st.sampled_from(("none", "causal", "padding") if text else ("none",)))
    # The first token of a causal network sees only itself: reading it leaves queries without a gradient.
    pools = ("token",) * (mask != "causal") + ("mean",) + ("each",) * text
    pool = draw(st.sampled_from(pools))
    tied = text and pool == "each" and draw(FLAGS)
    position = draw(st.sampled_from(("learned", "table", "sine", "none")))
    layers = draw(st.one_of(*(st.tuples(*[_layers(width)] * depth) for depth in (1, 1, 2))))
    rest = (draw(CLASSES), pool, position, mask, draw(FLAGS), tied, draw(RATES), draw(BATCHES))
    return Transformer(width, stem, layers, *rest)


def _patches() -> SearchStrategy[Patches]:
    sizes = st.tuples(*[st.sampled_from((8, 12, 16))] * 2)
    return st.builds(Patches, sizes, st.just(4), st.sampled_from(("conv", "reshape")))


def _layers(width: int) -> SearchStrategy[Layer]:
    heads = st.sampled_from([h for h in (2, 3, 4) if width % h == 0])
    attention = st.one_of(_attention(), _attention(), st.builds(Multihead, heads, FLAGS, RATES))
    hidden, kinds = st.sampled_from((6, 8, 12, 12, 18)), st.sampled_from(("plain", "chunk", "pair"))
    mlp = st.builds(Mlp, hidden, kinds, ACTS_1D, RATES)
    orders, norms = st.sampled_from(("pre", "pre", "post", "parallel")), st.sampled_from(NORMS_1D)
    return st.builds(Layer, attention, mlp, orders, norms, FLAGS, RATES)


@st.composite
def _attention(draw: st.DrawFn) -> Attention:
    project = draw(st.sampled_from(PROJECTIONS))
    kernel = draw(st.sampled_from(KERNELS))
    # One layer viewed as [3, H, D] has as many key heads as query heads, and CPU SDPA needs equal head dims.
    groups = 1 if project == "reshape" else draw(st.sampled_from((1, 2, 3)))
    value = 0 if project == "reshape" or kernel == "sdpa" else draw(st.sampled_from((0, 3, 5)))
    repeat = draw(st.sampled_from(REPEATS if kernel == "sdpa" else REPEATS[:2])) if groups > 1 else "expand"
    heads = draw(st.sampled_from((2, 3))), draw(st.sampled_from((4, 6)))
    rest = (draw(st.sampled_from(("none", *ROTARIES))), draw(FLAGS), draw(FLAGS), draw(RATES))
    return Attention(*heads, groups, value, project, kernel, repeat, *rest)
