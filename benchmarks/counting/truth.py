"""Multiply-accumulates per sample, from the numbers of each architecture and nothing that ran.

What counts: contractions (convolutions, linear layers, matrix products), causal ones in full. What does not:
norms, activations, softmax, pooling, interpolation, bias.
"""

from __future__ import annotations

from collections.abc import Sequence


def conv(inputs: int, outputs: int, kernel: int, positions: int, groups: int = 1) -> int:
    """`positions` are those of the output; of the input for a transposed convolution."""
    return inputs // groups * outputs * kernel * positions


def attention(queries: int, keys: int, width: int) -> int:
    """Scores and the weighted sum of values, all heads together."""
    return 2 * queries * keys * width


def encoder_layer(tokens: int, width: int, hidden: int) -> int:
    """Query, key, value and output projections, attention, an MLP of two layers."""
    return tokens * (4 * width**2 + 2 * width * hidden) + attention(tokens, tokens, width)


def resnet18(side: int = 224) -> int:
    """Stem 7x7, four stages of two blocks of two 3x3 convolutions, projections from stage to stage."""
    total, channels = conv(3, 64, 49, (side // 2) ** 2), 64
    for stage, width in enumerate((64, 128, 256, 512)):
        positions = (side // 4 // 2**stage) ** 2
        total += conv(channels, width, 9, positions) + 3 * conv(width, width, 9, positions)
        if stage:
            total += conv(channels, width, 1, positions)
        channels = width
    return total + 512 * 1000


def resnext50(side: int = 224) -> int:
    """Bottlenecks of 1x1, grouped 3x3 (32 groups, stride in the first of a stage) and 1x1."""
    total, channels = conv(3, 64, 49, (side // 2) ** 2), 64
    for stage, (blocks, width) in enumerate(zip((3, 4, 6, 3), (128, 256, 512, 1024), strict=True)):
        positions, outputs = (side // 4 // 2**stage) ** 2, 2 * width
        for block in range(blocks):
            entry = 4 * positions if stage and not block else positions  # the stride is in the 3x3
            total += conv(channels, width, 1, entry) + conv(width, width, 9, positions, 32)
            total += conv(width, outputs, 1, positions)
            total += 0 if block else conv(channels, outputs, 1, positions)
            channels = outputs
    return total + 2048 * 1000


def mobilenet_v2(side: int = 224) -> int:
    """Table 2 of its paper: expansion, channels, repeats, stride."""
    side, channels = side // 2, 32
    total = conv(3, 32, 9, side**2)
    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2))
    for expansion, outputs, repeats, first_stride in (*table, (6, 320, 1, 1)):
        for repeat in range(repeats):
            hidden = expansion * channels
            total += conv(channels, hidden, 1, side**2) if expansion > 1 else 0
            side //= 1 if repeat else first_stride
            total += conv(hidden, hidden, 9, side**2, groups=hidden) + conv(hidden, outputs, 1, side**2)
            channels = outputs
    return total + conv(320, 1280, 1, side**2) + 1280 * 1000


def vit(width: int = 768, layers: int = 12, patch: int = 16, side: int = 224) -> int:
    """Patches, a class token, encoder layers with a hidden width of four times the width, the class head."""
    patches = (side // patch) ** 2
    layer = encoder_layer(patches + 1, width, 4 * width)
    return conv(3, width, patch**2, patches) + layers * layer + width * 1000


def swin_tiny() -> int:
    """Windows of 7 x 7 tokens; merging takes 2 x 2 neighbors to twice the width."""
    total, window = conv(3, 96, 16, 56**2), 49
    for stage, layers in enumerate((2, 2, 6, 2)):
        side, width = 56 // 2**stage, 96 * 2**stage
        windows = side**2 // window
        total += layers * (side**2 * 12 * width**2 + windows * attention(window, window, width))
        if stage < 3:
            total += (side // 2) ** 2 * 4 * width * 2 * width
    return total + 768 * 1000


def llama(tokens: int, width: int, hidden: int, layers: int, heads: int, shared: int, vocabulary: int) -> int:
    """Grouped queries: keys and values have `shared` of the `heads`; a gated MLP of three matrices."""
    projections = 2 * width**2 + 2 * width * shared * (width // heads)
    layer = tokens * (projections + 3 * width * hidden) + attention(tokens, tokens, width)
    return layers * layer + tokens * width * vocabulary


def lstm(inputs: int, hidden: int, steps: int) -> int:
    """Four gates, each from the input and from the state."""
    return steps * 4 * (inputs * hidden + hidden * hidden)


def transposed(stages: Sequence[tuple[int, int, int, int, int]]) -> int:
    """Stages of (inputs, outputs, kernel elements, input positions, groups)."""
    return sum(conv(inputs, outputs, kernel, at, groups) for inputs, outputs, kernel, at, groups in stages)
