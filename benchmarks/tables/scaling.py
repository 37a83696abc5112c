"""Time and memory of `dynamize` by number of nodes and of parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.tables.markdown import block, read, source, table


def render(results: Path) -> str:
    """One row per network; seconds of CPU time, and what of them is not torch.export."""
    found = read(results, "scaling")
    heads = ("network", "nodes", "parameters", "`dynamize`, s", "two exports, s", "ratio", "peak memory")
    rows = (_line(one) for one in found["rows"])
    note = (
        "CPU seconds of one thread; nodes of the training graph; memory is growth of the peak. "
        "Beside it the two bare `torch.export` calls that it needs. On the meta device weights take none."
    )
    return block(table(heads, rows), note, source("python -m benchmarks scaling", found))


def _line(one: dict[str, Any]) -> tuple[str, ...]:
    where = " (meta)" if one["device"] == "meta" else ""
    return (
        f"{one['network']}, `{one['method']}`{where}",
        f"{one['nodes']:,}",
        f"{one['parameters'] / 1e6:,.1f} M",
        f"{one['seconds']:.1f}",
        f"{one['exports']:.1f}",
        f"{one['seconds'] / one['exports']:.2f}",
        f"{one['memory'] / 2**20:,.0f} MiB",
    )
