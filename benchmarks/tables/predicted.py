"""How well latency is predicted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.tables.markdown import block, percent, read, source, table


def render(results: Path) -> str:
    """Medians and quartiles of the absolute relative errors, per model, method and kind of batch."""
    found = read(results, "latency")
    rows = (
        (f"`{name}`", _error(one, "predicted"), _error(one, "macs"), f"{one['correlation']:.2f}")
        for name, one in found["rows"].items()
    )
    note = (
        "Absolute relative error of the predicted share of the source's time on random routes: median "
        "[quartiles]. MACs: the same error if time were proportional to MACs."
    )
    heads = ("model, method, batch", "`Latency`", "MACs", "correlation")
    return block(table(heads, rows), note, source("python -m benchmarks latency", found))


def _error(one: dict[str, Any], key: str) -> str:
    if key not in one:
        return "-"
    found = one[key]["absolute"]
    return f"{percent(found['median'], 1)} [{percent(found['low'], 1)}, {percent(found['high'], 1)}]"
