"""Random small networks for property tests: `cnns()`, `transformer_nets()`, and `networks()` for one of both.

A drawn `Net` prints as the Python expression that builds it again: `assemble(Cnn(...), seed=3)`, with every
name exported here.
"""

from .attention import Attention, Multihead
from .blocks import Basic, Bottleneck, Depthwise, Grouped, Inverted, Plain
from .cnn import Cnn, Head
from .mixing import Branches, ConvNext, Dense, Drop, Pool, Shuffle, Upsample
from .net import Net, Spec, assemble, dynamic_batch, randomize
from .strategies import cnns, networks, transformer_nets
from .transformer import Layer, Mlp, Patches, Tokens, Transformer

__all__ = [
    "Attention",
    "Basic",
    "Bottleneck",
    "Branches",
    "Cnn",
    "ConvNext",
    "Dense",
    "Depthwise",
    "Drop",
    "Grouped",
    "Head",
    "Inverted",
    "Layer",
    "Mlp",
    "Multihead",
    "Net",
    "Patches",
    "Plain",
    "Pool",
    "Shuffle",
    "Spec",
    "Tokens",
    "Transformer",
    "Upsample",
    "assemble",
    "cnns",
    "dynamic_batch",
    "networks",
    "randomize",
    "transformer_nets",
]
