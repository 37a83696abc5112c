"""Tables and figures of README and docs/results.md, rendered from ``benchmarks/results``.

Text cannot drift from data.

A block is what stands between these two lines, and ``python -m benchmarks.tables`` writes it:

    <!-- table: NAME -->
    <!-- table: end -->

A figure in a sentence (`numbers`) stands between ``<!-- figure: NAME -->`` and ``<!-- end -->``.

A renderer is a function of the folder of results. Each says by which command its data came to be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.tables import (
    accuracy,
    checkpoints,
    counting,
    coverage,
    demo,
    deployment,
    highlights,
    predicted,
    processors,
    routes,
    scaling,
    single,
    widths,
    zoo,
)

RENDERERS: Mapping[str, Callable[[Path], str]] = {
    "demo": demo.render,
    "zoo": zoo.render,
    "coverage": coverage.render,
    "coverage-models": coverage.render_models,
    "counting": counting.render,
    "checkpoints": checkpoints.render,
    "scaling": scaling.render,
    "deployment": deployment.render,
    "speed": highlights.render_speed,
    "processors": processors.render,
    "accuracy": highlights.render_accuracy,
    "widths": widths.render,
    "skipping": routes.render_skipping,
    "routing": routes.render_routing,
    "resolution": routes.render_resolution,
    "synthesis": single.render_synthesis,
    "conversion": single.render_conversion,
    "training_step": single.render_training_step,
    "latency": predicted.render,
    "fashion": accuracy.render_fashion,
    "exits": accuracy.render_exits,
    "text": accuracy.render_text,
    "multiscale": accuracy.render_multiscale,
}
"""Name of a block -> its content from the folder of results."""
