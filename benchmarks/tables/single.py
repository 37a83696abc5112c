"""Single layers, and what conversion and training cost."""

from __future__ import annotations

from pathlib import Path

from benchmarks.tables.markdown import block, read, short, source, table, times

_REFERENCES = {
    "condconv": "deployed, over timm's CondConv2d",
    "trained": "as trained, over it",
    "equal_kernels": "as trained, over it with as many kernels",
    "static": "deployed, over the static layer",
}


def render_synthesis(results: Path) -> str:
    """Layers with a kernel per sample, per shape and batch."""
    found = read(results, "synthesis")
    layers = found["layers"]
    kinds = [
        kind for kind in _REFERENCES if all(kind in one for by in layers.values() for one in by.values())
    ]
    rows = (
        (f"{shape}, batch {rows}", *(times(one[kind]["cpu"]) for kind in kinds))
        for shape, by_rows in layers.items()
        for rows, one in sorted(by_rows.items(), key=lambda item: int(item[0]))
    )
    heads = (f"CPU time, {found['bases']} bases", *(_REFERENCES[kind] for kind in kinds))
    return block(table(heads, rows), source("python -m benchmarks synthesis", found))


def render_conversion(results: Path) -> str:
    """Time of `dynamize` over the two exports that it needs."""
    found = read(results, "conversion")
    rows = ((short(model), times(one["wall"]), times(one["cpu"])) for model, one in found["ratios"].items())
    heads = ("`dynamize` over two bare exports", "wall time", "CPU time")
    return block(table(heads, rows), source("python -m benchmarks conversion", found))


def render_training_step(results: Path) -> str:
    """A training step at full capacity over the source's."""
    found = read(results, "training_step")
    rows = (
        (short(model), times(one["time"]["wall"]), times(one["time"]["cpu"]), _memory(one["memory"]))
        for model, one in found["models"].items()
    )
    heads = (f"training step at full, batch {found['batch']}", "wall time", "CPU time", "memory for backward")
    return block(table(heads, rows), source("python -m benchmarks training_step", found))


def _memory(one: dict[str, int]) -> str:
    return f"{one['dynamic'] / one['source']:.2f}"
