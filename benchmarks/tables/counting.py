"""Counts of multiply-accumulates over derived ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.counting.cases import CASES
from benchmarks.tables.markdown import block, read, source, table

COUNTERS = ("ours", "torch, no_grad", "torch, unfused", "fvcore", "fvcore, contractions")


def render(results: Path) -> str:
    """One row per network; 1 is exact, and written so only then."""
    found = read(results, "counting")
    rows = (
        (name, f"{one['derived'] / 1e6:,.1f} M", *(_share(one, counter) for counter in COUNTERS))
        for name, one in sorted(found["cases"].items(), key=lambda item: list(CASES).index(item[0]))
    )
    heads = ("MACs over the derived count", "derived", *COUNTERS)
    return block(
        table(heads, rows), _unmodeled(found["cases"]), source("python -m benchmarks counting", found)
    )


def _share(one: dict[str, Any], counter: str) -> str:
    return "1" if one[counter] == one["derived"] else f"{one[counter] / one['derived']:.3f}"


def _unmodeled(cases: dict[str, dict[str, Any]]) -> str:
    said = [f"{name}: {', '.join(one['unmodeled'])}" for name, one in cases.items() if one["unmodeled"]]
    named = (
        f" Operators that ours has no cost for are named in `explain` ({'; '.join(said)})." if said else ""
    )
    return (
        "Derived by hand from the architectures (`benchmarks/counting/truth.py`): contractions only. torch's "
        f"`FlopCounterMode` is halved; unfused: gradients on, `SDPBackend.MATH`.{named}"
    )
