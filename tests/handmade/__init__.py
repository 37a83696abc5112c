"""Fixed small networks for golden and unit tests; each function returns a module and its example input.

The example input is a tensor, a tuple (positional) or a dict (keywords), as `dynamize` takes it. All can be
captured but `control_flow`.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from .convolutional import dense, depthwise_se, flatten_cnn, grouped, headless, plain_cnn, resnet, shuffle
from .special import (
    OUTPUTS,
    Named,
    Output,
    buffer_constant,
    control_flow,
    dtype_literals,
    multi_output,
    no_parameters,
    two_inputs,
)
from .transformer import bert_like, decoder, mystery, unknown_op_vit, vit

__all__ = [
    "CAPTURABLE",
    "OUTPUTS",
    "Named",
    "Output",
    "bert_like",
    "buffer_constant",
    "control_flow",
    "decoder",
    "dense",
    "depthwise_se",
    "dtype_literals",
    "flatten_cnn",
    "grouped",
    "headless",
    "multi_output",
    "mystery",
    "no_parameters",
    "plain_cnn",
    "resnet",
    "shuffle",
    "two_inputs",
    "unknown_op_vit",
    "vit",
]

CAPTURABLE: tuple[Callable[[], tuple[nn.Module, Any]], ...] = (
    resnet,
    headless,
    plain_cnn,
    grouped,
    depthwise_se,
    dense,
    shuffle,
    vit,
    unknown_op_vit,
    bert_like,
    decoder,
    flatten_cnn,
    no_parameters,
    multi_output,
    two_inputs,
    buffer_constant,
    dtype_literals,
)
