"""Commands that measure time on this device."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from dyncompile.cli.app import (
    METHODS,
    AsJson,
    Data,
    Deviation,
    Mean,
    Method,
    Saved,
    SourceModel,
    app,
    examples,
)
from dyncompile.cli.data import load_data, pixels
from dyncompile.cli.models import load_model, make_dynamic, open_model
from dyncompile.cli.output import busy, check_file, errors_as_panels, progress, say, show, write_file
from dyncompile.cli.routes import uniform_routes
from dyncompile.deploy import deploy
from dyncompile.files import current
from dyncompile.latency import Latency, Profile, Ratio
from dyncompile.latency import profile as profiled
from dyncompile.latency.bench import Reference, Timing
from dyncompile.latency.bench import bench as timed
from dyncompile.latency.inputs import device_of, random_inputs
from dyncompile.latency.profiling import COLUMNS, cells, summary
from dyncompile.report.sections import percent
from dyncompile.report.timing_plot import TimedPoint, timing_plot
from dyncompile.runtime.model import DynamicModel
from dyncompile.spec import parse_specs
from dyncompile.stored.description import PROGRAM, read_description
from dyncompile.train.accelerated import world
from dyncompile.train.data import Feed, Layout, open_stream

_BATCHES = 16
"""Batches of data that are timed at most; pairs take them in turn."""

Rows = Annotated[int, typer.Option("--batch-size", min=1, help="Rows per call.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads that torch uses.")]
AsDeployed = Annotated[
    bool, typer.Option("--deployed", help="Take the copy for inference that dc.deploy makes.")
]


@app.command(
    epilog=examples(
        "dyncompile profile OUT",
        'dyncompile profile timm:resnet50 --method "dsnet(per=stage)" --batch-size 8 --json',
    )
)
def profile(
    model: Annotated[
        str,
        typer.Argument(
            metavar="OUT_OR_MODEL",
            help="A dynamic model that convert or train wrote, or a source by name, to which --method is "
            "applied.",
            show_default=False,
        ),
    ],
    method: Method = METHODS,
    batch_size: Rows = 1,
    threads: Threads = 1,
    rounds: Annotated[int, typer.Option(min=1, help="How often everything is timed.")] = 15,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure, whatever the cache holds.")] = False,
    deployed: AsDeployed = False,
    source: SourceModel = None,
    as_json: AsJson = False,
) -> None:
    """Show MACs beside time for every choice and column, and say where no gain is to be had."""
    with errors_as_panels():
        torch.set_num_threads(threads)
        with busy(f"loading {model}"):
            dyn = _dynamic(model, method, source)
            dyn = deploy(dyn) if deployed else dyn.eval()
        with busy("timing operators"):
            found = profiled(dyn, latency=Latency(dyn, batch=batch_size, rounds=rounds, fresh=fresh))
        if as_json:
            say(json.dumps(asdict(found), indent=2))
        else:
            show(_profile_table(found), str(found))


def _dynamic(model: str, method: list[str], source: str | None) -> DynamicModel:
    """A saved dynamic model, or a source made dynamic."""
    folder = Path(model)
    if folder.is_dir() and current(folder, PROGRAM).exists():
        return open_model(folder, source)
    return make_dynamic(load_model(model), parse_specs(method, {})).dyn


def _profile_table(found: Profile) -> Group:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in COLUMNS[:2] else "right")
    for row in found.rows:
        table.add_row(*map(Text, cells(row)))
    lines = (Text(f"no gain: {finding}", style="yellow") for finding in found.findings)
    return Group(*map(Text, summary(found)), table, *lines)


# -- bench --------------------------------------------------------------------------------------------


@app.command(
    epilog=examples(
        "dyncompile bench OUT",
        "dyncompile bench OUT --data images/ --plot time.svg",
        "dyncompile bench OUT --batch-size 1 --pairs 50 --threads 1 --deployed --json",
    )
)
def bench(
    model: Saved,
    batch_size: Rows = 8,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of measurements per row of the table.")] = 20,
    threads: Threads = 1,
    data: Annotated[
        Data | None, typer.Option(metavar="DATA", help="As for train; adds learned routes on its inputs.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw time against MACs.", show_default=False)
    ] = None,
    deployed: AsDeployed = False,
    source: SourceModel = None,
    mean: Mean = None,
    deviation: Deviation = None,
    as_json: AsJson = False,
) -> None:
    """Time the dynamic model at full capacity, every route and learned routes, in turns with the source.

    Without --source the source is the full route folded to a static graph. Without --data inputs are random,
    and no decision net is asked.
    """
    with errors_as_panels():
        if plot is not None:
            check_file(plot)
        torch.set_num_threads(threads)
        with busy(f"loading {model}"):
            dyn = open_model(model, source)
            batches = [random_inputs(dyn.program, batch_size, device_of(dyn))]
            if data is not None:
                sets = load_data(data, dyn, pixels(mean, deviation, read_description(model)["source"]))
                batches = list(_batches(dyn, sets.measured, batch_size))
            reference = None if source is None else _reference(dyn, source)
            dyn = deploy(dyn) if deployed else dyn.eval()
        with progress() as watch:
            rows = timed(
                dyn,
                uniform_routes(dyn),
                batches,
                reference=reference,
                learned=data is not None,
                pairs=pairs,
                watch=watch,
            )
        if plot is not None:
            points = [TimedPoint(row.name, row.group, row.share, row.latency.wall) for row in rows]
            write_file(plot, timing_plot(points, f"{model}, batch {batch_size}"))
        say(json.dumps([asdict(row) for row in rows], indent=2) if as_json else _told(rows))


def _batches(dyn: DynamicModel, data: Any, rows: int) -> Iterator[Sequence[Any]]:
    """Flat inputs of the first batches of a dataset; one that is not whole counts only if it is alone."""
    with world(None, (), None) as here:
        stream = open_stream(data, Layout(rows, 1, 0, 1, training=False), here)
        feed = Feed(stream, dyn.program, device_of(dyn))
        signature = dyn.program.signature
        for at, batch in zip(range(_BATCHES), feed.epoch(0), strict=False):
            flat = signature.flatten(batch.args, batch.kwargs)
            if at and signature.rows(flat) < rows:
                return
            yield flat


def _reference(dyn: DynamicModel, source: str) -> Reference:
    """The source itself, on flat inputs."""
    model = load_model(source).model.eval()
    return lambda flat: model(**dyn.program.signature.named(flat))


def _told(rows: Sequence[Timing]) -> str:
    head = "time relative to the source"
    width = max(len(head), *(len(row.name) for row in rows))
    walls, cpus = ([_ratio(one) for one in both] for both in _clocks(rows))
    wide = max(map(len, walls))
    lines = [f"{head:<{width}}    MACs  {'wall':<{wide}}  CPU"]
    for row, wall, cpu in zip(rows, walls, cpus, strict=True):
        lines.append(f"{row.name:<{width}}  {percent(row.share):>6}  {wall:<{wide}}  {cpu}")
    return "\n".join((*lines, f"medians and quartiles of {rows[0].latency.pairs} interleaved pairs each"))


def _clocks(rows: Sequence[Timing]) -> tuple[list[Ratio], list[Ratio]]:
    return [row.latency.wall for row in rows], [row.latency.cpu for row in rows]


def _ratio(one: Ratio) -> str:
    return f"{one.median:.2f} [{one.low:.2f}, {one.high:.2f}]"
