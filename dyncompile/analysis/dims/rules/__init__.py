"""Rules per ATen operator of the training IR. Importing this package fills the table."""

from dyncompile.analysis.dims.rules import (
    contraction,
    decisions,
    indexing,
    norms,
    pointwise,
    reductions,
    shapes,
    spatial,
    synthesis,
)
from dyncompile.analysis.dims.table import find_rule

FAMILIES = (contraction, decisions, indexing, norms, pointwise, reductions, shapes, spatial, synthesis)

__all__ = ["FAMILIES", "find_rule"]
