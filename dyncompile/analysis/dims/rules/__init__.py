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
)
from dyncompile.analysis.dims.table import find_rule

FAMILIES = (contraction, decisions, indexing, norms, pointwise, reductions, shapes, spatial)

__all__ = ["FAMILIES", "find_rule"]
