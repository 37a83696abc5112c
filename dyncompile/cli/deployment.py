"""Commands that take static networks out of a dynamic one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import fx

from dyncompile.cli.app import AsJson, Saved, Settings, Smallest, SourceModel, app, examples
from dyncompile.cli.models import open_model
from dyncompile.cli.output import busy, errors_as_panels, say
from dyncompile.cli.routes import parse_route
from dyncompile.deploy import export as export_model
from dyncompile.deploy import specialize as specialized
from dyncompile.deploy.exports.exporting import batch_of
from dyncompile.deploy.exports.formats import BUNDLE, FORMATS, check_format
from dyncompile.deploy.exports.static import Written, write_static
from dyncompile.errors import SpecError
from dyncompile.program import Route
from dyncompile.report.sections import percent, quantity
from dyncompile.runtime.model import DynamicModel

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
        if output.suffix != ".pt2":
            raise SpecError(
                f"specialize writes .pt2, and {output.name} does not end so",
                fix="name it FILE.pt2; dyncompile export with --smallest or --route writes .onnx",
            )
        _take_out(model, output, route, smallest, source, "pt2", as_json)


@app.command(
    epilog=examples(
        "dyncompile export OUT -o dynamic.onnx",
        "dyncompile export OUT --smallest -o narrow.onnx",
        "dyncompile export OUT --format bundle -o served",
    )
)
def export(
    model: Saved,
    output: File,
    route: Settings = [],  # noqa: B006
    smallest: Smallest = False,
    file_format: Annotated[
        str | None,
        typer.Option("--format", help="onnx, pt2 or bundle (a new folder); by default what FILE ends in."),
    ] = None,
    source: SourceModel = None,
    as_json: AsJson = False,
) -> None:
    """Write the dynamic model for one sample, its decisions inside, as ONNX or .pt2.

    With --smallest or --route it is the static network of that route, at any batch. What is written is run
    and compared first.
    """
    with errors_as_panels():
        chosen = file_format or output.suffix.removeprefix(".")
        if file_format is None and chosen not in (*FORMATS, BUNDLE):
            raise SpecError(f"{output.name} names no format", fix=f"end it in .{' or .'.join(FORMATS)}")
        check_format(chosen, FORMATS if route or smallest else (*FORMATS, BUNDLE))
        if route or smallest:
            _take_out(model, output, route, smallest, source, chosen, as_json)
        else:
            _write_dynamic(model, output, source, chosen, as_json)


def _write_dynamic(model: Path, output: Path, source: str | None, chosen: str, as_json: bool) -> None:
    with busy(f"loading {model}"):
        dyn = open_model(model, source)
    with busy("writing, comparing"):
        written = export_model(dyn, output, chosen)
    found = {"file": str(written.path), "bytes": written.bytes, "difference": written.difference}
    say(json.dumps(found, indent=2) if as_json else _written(found))


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
        written = write_static(static, dyn.program.signature, output, chosen, batch_of(dyn, None))
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
        f"{_written(found)}"
    )


def _written(found: dict[str, Any]) -> str:
    return f"written: {found['file']} ({found['bytes']:,} bytes), max abs diff {found['difference']:.3g}"
