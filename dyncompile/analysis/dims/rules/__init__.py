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

__all__ = ["contraction", "decisions", "indexing", "norms", "pointwise", "reductions", "shapes", "spatial"]
