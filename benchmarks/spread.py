"""What several runs found, as text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def spread(values: Sequence[float], digits: int = 1) -> str:
    """A mean of what there is (NaN is not), and where there are several the standard deviation."""
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):z.{digits}f}{deviation}"
