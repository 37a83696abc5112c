"""Commands that look at what lies on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from dyncompile.cli.app import AsJson, Deviation, Mean, Saved, SourceModel, app, examples
from dyncompile.cli.data import load_data, pixels
from dyncompile.cli.models import open_model
from dyncompile.cli.output import busy, check_file, errors_as_panels, progress, say, write_file
from dyncompile.cli.training import TRAINING
from dyncompile.files import current
from dyncompile.program import size_label
from dyncompile.report.html import build_report
from dyncompile.stored import is_of_a_size
from dyncompile.stored.description import is_ours, read_description
from dyncompile.train.history import read_history
from dyncompile.weights import open_weights


@app.command(epilog=examples("dyncompile inspect OUT", "dyncompile inspect OUT --json"))
def inspect(model: Saved, as_json: AsJson = False) -> None:
    """Say what a saved model is, from its files alone: nothing is built, no weight is read."""
    with errors_as_panels():
        found = _inspected(model)
        say(json.dumps(found, indent=2) if as_json else _told(found))


def _inspected(folder: Path) -> dict[str, Any]:
    description = read_description(folder)
    with open_weights(current(folder, description["weights"])) as file:
        shapes = dict(file.shapes)
    sizes = {name: _count(shape) for name, shape in shapes.items()}
    added = {name: n for name, n in sizes.items() if name.startswith("dyn.")}
    remark = _lacking(description, shapes)
    return {
        "format": description["version"],
        "torch": description.get("torch"),
        "source": description["source"],
        "passes": description["history"],
        "inputs": description["inputs"],
        "fingerprint": description["fingerprint"],
        "loads_without_source": remark is None,
        "sizes": description["sizes"],
        "remark": remark,
        "tensors": len(shapes),
        "numbers": {"source": sum(sizes.values()) - sum(added.values()), "added": sum(added.values())},
        "files": {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if is_ours(path.name)},
    }


def _lacking(description: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """Why the source's code is needed to load; None where it is not."""
    if description["graph"] is None:
        return description.get("remark") or "no graph is stored"
    if not description["sizes"] and any(map(is_of_a_size, names)):
        return "an earlier release wrote it, which stored the graph of one input size alone"
    return None


def _in_words(described: Any) -> str:
    """``[B, 3, 32, 32] float32`` for a tensor; what else a call may hold as the file says it."""
    match described:
        case {"tensor": {"shape": [*sizes], "dtype": str(dtype)}}:
            return f"[{', '.join('B' if size is None else str(size) for size in sizes)}] {dtype}"
        case _:
            return json.dumps(described)


def _count(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _told(found: dict[str, Any]) -> str:
    source = found["source"] or "not recorded"
    labels = ", ".join(size_label((height, width)) for height, width in found["sizes"])
    graph = f"yes, from its graph{f', and those at {labels}' if labels else ''}"
    if not found["loads_without_source"]:
        graph = f"no: {found['remark']}"
    return "\n".join(
        [
            f"format    {found['format']}, written with torch {found['torch']}",
            f"source    {source}",
            f"passes    {' | '.join(found['passes'])}",
            f"inputs    {', '.join(f'{name} {_in_words(one)}' for name, one in found['inputs'].items())}",
            f"tensors   {found['tensors']}: {found['numbers']['source']:,} numbers of the source, "
            f"{found['numbers']['added']:,} added",
            f"loads without the source's code: {graph}",
            *(f"{size:>12,}  {name}" for name, size in found["files"].items()),
        ]
    )


@app.command(
    epilog=examples("dyncompile report TRAINED", "dyncompile report TRAINED --data images/ -o report.html")
)
def report(
    model: Saved,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA", help="As for train: adds accuracy against MACs, and the use of choices."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="By default OUT/report.html.")
    ] = None,
    source: SourceModel = None,
    mean: Mean = None,
    deviation: Deviation = None,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML page: decision points, costs, coverage, rejections, results."""
    with errors_as_panels():
        with busy(f"loading {model}"):
            dyn = open_model(model, source)
        path = output or model / "report.html"
        check_file(path)
        named = read_description(model)["source"]
        sets = None if data is None else load_data(data, dyn, pixels(mean, deviation, named))
        chosen = None if sets is None else sets.measured
        with progress() as watch:
            title, history = named or model.resolve().name, read_history(model / TRAINING, "")
            page = build_report(dyn, chosen, history, title=title, watch=watch)
        write_file(path, page)
        found = {"file": str(path), "bytes": path.stat().st_size}
        say(json.dumps(found, indent=2) if as_json else f"written: {path}")
