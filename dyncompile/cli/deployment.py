"""Commands that take static networks out of a dynamic one, and that time it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import fx

from dyncompile.checkpoint import read_description
from dyncompile.cli.app import AsJson, Saved, Settings, Smallest, SourceModel, app, examples
from dyncompile.cli.models import load_model, open_model
from dyncompile.cli.output import busy, errors_as_panels, progress, say
from dyncompile.cli.routes import parse_route, uniform_routes
from dyncompile.deploy import specialize as specialized
from dyncompile.deploy.static_files import FORMATS, Written, write_static
from dyncompile.errors import SpecError
from dyncompile.latency import Comparison, compare
from dyncompile.policies import Forced, Full
from dyncompile.program import Route
from dyncompile.report.sections import percent, quantity
from dyncompile.runtime.model import DynamicModel
from dyncompile.stored.calling import example_inputs

File = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="What to write.")]


@app.command(
    epilog=examples(
        "dyncompile specialize OUT --smallest -o narrow.pt2",
        "dyncompile specialize OUT --route width=0.5 -o half.pt2 --json",
    )
)
def specialize(
    model: Saved,
    output: File,
    route: Settings = [],  # noqa: B006
    smallest: Smallest = False,
    source: SourceModel = None,
    as_json: AsJson = False,
) -> None:
    """Fold a route into a plain static network (.pt2), and say what it costs."""
    with errors_as_panels():
        _take_out(model, output, route, smallest, source, "pt2", as_json)


@app.command(
    epilog=examples(
        "dyncompile export OUT --smallest -o narrow.onnx",
        "dyncompile export OUT --route width=0.5 -o half.bin --format onnx",
    )
)
def export(
    model: Saved,
    output: File,
    route: Settings = [],  # noqa: B006
    smallest: Smallest = False,
    file_format: Annotated[
        str | None, typer.Option("--format", help="onnx or pt2; by default what FILE ends in.")
    ] = None,
    source: SourceModel = None,
    as_json: AsJson = False,
) -> None:
    """Write the static network of a route as ONNX or .pt2; the file is run and compared first."""
    with errors_as_panels():
        chosen = file_format or output.suffix.removeprefix(".")
        if chosen not in FORMATS:
            raise SpecError(f"{output.name} names no format", fix=f"end it in .{' or .'.join(FORMATS)}")
        _take_out(model, output, route, smallest, source, chosen, as_json)


def _take_out(
    model: Path,
    output: Path,
    words: list[str],
    smallest: bool,
    source: str | None,
    chosen: str,
    as_json: bool,
) -> None:
    with busy(f"loading {model}"):
        dyn = open_model(model, source)
    route = parse_route(dyn, words, smallest=smallest)
    with busy("specializing, writing, comparing"):
        static = specialized(dyn, route)
        written = write_static(static, dyn.program.signature, output, chosen)
    found = _costs(dyn, static, route, written)
    say(json.dumps(found, indent=2) if as_json else _told(found))


def _costs(dyn: DynamicModel, static: fx.GraphModule, route: Route, written: Written) -> dict[str, Any]:
    macs = float(dyn.macs(route)[0])
    return {
        "file": str(written.path),
        "bytes": written.bytes,
        "macs": macs,
        "share": macs / dyn.static_macs,
        "parameters": sum(p.numel() for p in static.parameters()),
        "difference": written.difference,
    }


def _told(found: dict[str, Any]) -> str:
    return (
        f"{quantity(found['macs'])} MACs ({percent(found['share'])} of the source), "
        f"{found['parameters']:,} parameters\n"
        f"written: {found['file']} ({found['bytes']:,} bytes), max abs diff {found['difference']:.3g}"
    )


@dataclass(frozen=True)
class Timing:
    """One thing that was timed against the source: its share of MACs, its ratio of times."""

    name: str
    share: float
    latency: Comparison


@app.command(
    epilog=examples(
        "dyncompile bench OUT", "dyncompile bench OUT --batch-size 1 --pairs 50 --threads 1 --json"
    )
)
def bench(
    model: Saved,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per call, random inputs.")] = 8,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of measurements per row of the table.")] = 20,
    threads: Annotated[int, typer.Option(min=1, help="Threads that torch uses.")] = 1,
    source: SourceModel = None,
    as_json: AsJson = False,
) -> None:
    """Time the dynamic model at full capacity and every route, in turns with the source network.

    Without --source the source is the full route folded to a static graph.
    """
    with errors_as_panels():
        torch.set_num_threads(threads)
        with busy(f"loading {model}"):
            dyn = open_model(model, source)
            given = _batch(read_description(model)["inputs"], batch_size)
            reference = _reference(dyn, source)
        with progress() as watch:
            rows = _timed(dyn, given, reference, pairs, watch)
        say(json.dumps([asdict(row) for row in rows], indent=2) if as_json else _table(rows))


def _batch(described: Any, rows: int) -> dict[str, Any]:
    """Random arguments: normal numbers, ones for integers."""

    def filled(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return (
            torch.randn(value.shape).to(value.dtype) if value.is_floating_point() else torch.ones_like(value)
        )

    sized = json.loads(json.dumps(described))
    _set_rows(sized, rows)
    return {name: filled(value) for name, value in example_inputs(sized, torch.device("cpu")).items()}


def _set_rows(described: Any, rows: int) -> None:
    """Put a number in the place of every batch."""
    for key, value in described.items() if isinstance(described, dict) else enumerate(described):  # pyright: ignore
        if key == "shape":
            described[key] = [rows if n is None else n for n in value]  # pyright: ignore
        elif isinstance(value, dict | list):
            _set_rows(value, rows)


def _reference(dyn: DynamicModel, source: str | None) -> Callable[[dict[str, Any]], object]:
    if source is not None:
        model = load_model(source).model
        return lambda given: model(**given)
    static = specialized(dyn, parse_route(dyn, [], smallest=False))
    return lambda given: static(**{k: v for k, v in given.items() if isinstance(v, torch.Tensor)})


@torch.no_grad()
def _timed(
    dyn: DynamicModel,
    given: dict[str, Any],
    reference: Callable[[dict[str, Any]], object],
    pairs: int,
    watch: Callable[[str, int, int], object],
) -> list[Timing]:
    runs: dict[str, tuple[float, Callable[[], object]]] = {
        "dynamic at full": (1.0, lambda: dyn.run(policy=Full(), **given))
    }
    tensors = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
    for label, route in uniform_routes(dyn).items():
        share, static = float(dyn.macs(route)[0]) / dyn.static_macs, specialized(dyn, route)
        forced = Forced({name: rows.expand(_rows(given), -1) for name, rows in route.items()})
        runs[f"dynamic at {label}"] = share, lambda forced=forced: dyn.run(policy=forced, **given)
        runs[f"static {label}"] = share, lambda static=static: static(**tensors)
    rows: list[Timing] = []
    for name, (share, run) in runs.items():
        rows.append(Timing(name, share, compare(run, lambda: reference(given), pairs)))
        watch("timing", len(rows), len(runs))
    return rows


def _rows(given: dict[str, Any]) -> int:
    return next(len(value) for value in given.values() if isinstance(value, torch.Tensor))


def _table(rows: list[Timing]) -> str:
    width = max(len(row.name) for row in rows)
    lines = [f"{'time relative to the source':<{width}}    MACs  wall           CPU"]
    for row in rows:
        wall, cpu = (
            f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
            for ratio in (row.latency.wall, row.latency.cpu)
        )
        lines.append(f"{row.name:<{width}}  {percent(row.share):>6}  {wall}  {cpu}")
    return "\n".join(lines)
