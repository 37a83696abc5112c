"""Results of the commands as rich tables."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dyncompile.cli.convert import Conversion
from dyncompile.cli.routes import parse_route
from dyncompile.demo import DemoResult, WidthResult
from dyncompile.latency import Ratio
from dyncompile.report.sections import percent, quantity
from dyncompile.runtime.model import DynamicModel
from dyncompile.stored.description import read_description
from dyncompile.verify import Report

_DEMO_COLUMNS = (
    "width",
    "MACs",
    "share",
    "weights",
    "wall time",
    "CPU time",
    "accuracy",
    "max diff",
)


def verify_table(report: Report) -> Table:
    """One line per invariant."""
    table = Table(
        "", "invariant", "max abs diff", "detail", box=None, padding=(0, 2, 0, 0), header_style="dim"
    )
    for check in report.checks:
        mark = Text("ok", style="green") if check.passed else Text("FAIL", style="bold red")
        table.add_row(mark, Text(check.name), f"{check.difference:.3g}", Text(check.detail))
    return table


def conversion_summary(done: Conversion) -> Group:
    """What was written, what it can spend, and what to do with it."""
    source, dyn = done.loaded.source.name, done.loaded.dyn
    alone = read_description(done.folder)["graph"] or source.startswith(("timm:", "torchvision:", "hf:"))
    load = f'dyncompile.load("{done.folder}"{"" if alone else ", source=model"})'
    lines = (
        f"{done.tensors} tensors of {source} -> {done.folder}",
        f"passes: {' | '.join(dyn.history)}; all {len(done.report.checks)} invariants hold",
        f"{quantity(dyn.static_macs)} MACs at full capacity, {percent(_least(dyn))} of them at the cheapest",
        f"train it with dyncompile train {done.folder} --data images/ -o trained",
        f"or load it with {load}",
    )
    return Group(*map(Text, lines))


def _least(dyn: DynamicModel) -> float:
    """Share of the source's MACs with all choices at their cheapest."""
    return float(dyn.macs(parse_route(dyn, [], smallest=True))[0]) / dyn.static_macs


def conversion_data(done: Conversion) -> dict[str, Any]:
    """The same, and the proof, as plain values."""
    return {
        "folder": str(done.folder),
        "source": done.loaded.source.name,
        "tensors": done.tensors,
        "passes": list(done.loaded.dyn.history),
        "macs": done.loaded.dyn.static_macs,
        "smallest_share": _least(done.loaded.dyn),
        "passed": done.report.passed,
        "checks": [asdict(check) for check in done.report.checks],
    }


def demo_report(result: DemoResult) -> Group:
    """The table of widths, with what one needs to know to read it."""
    return Group(Text(""), _demo_table(result), *map(Text, _remarks(result)))


def _demo_table(result: DemoResult) -> Table:
    title = "Widths of one set of weights, each specialized to a static graph, and the dynamic model"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in _DEMO_COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for width in result.widths:
        table.add_row(*_demo_row(width))
    table.add_row(*_learned_row(result))
    return table


def _demo_row(width: WidthResult) -> tuple[RenderableType, ...]:
    return (
        width.label,
        quantity(width.macs),
        percent(width.macs_share),
        f"{width.parameters:,}",
        _ratio(width.latency.wall),
        _ratio(width.latency.cpu),
        percent(width.accuracy),
        f"{width.difference:.2g}",
    )


def _learned_row(result: DemoResult) -> tuple[RenderableType, ...]:
    """The decision net's choices: no single graph, so no parameters of its own and nothing to differ from."""
    learned = result.learned
    return (
        "gated",
        quantity(learned.macs_share * result.source_macs),
        percent(learned.macs_share),
        "",
        _ratio(learned.latency.wall),
        _ratio(learned.latency.cpu),
        percent(learned.accuracy),
        "",
    )


def _ratio(ratio: Ratio) -> str:
    """Median and half the distance of the quartiles."""
    return f"{ratio.median:.2f} ± {(ratio.high - ratio.low) / 2:.2f}"


def _remarks(result: DemoResult) -> tuple[str, ...]:
    digits, config = result.digits, result.config
    same = min(width.same_predictions for width in result.widths)
    use = ", ".join(f"{label}: {percent(share)}" for label, share in result.learned.use.items())
    return (
        f"Gated: a decision net picks a width for every image ({use}), asked to spend "
        f"{percent(config.target)} of the source's MACs. The same widths dealt to other images: accuracy "
        f"{percent(result.learned.shuffled_accuracy)}.",
        f"Source: {result.source_parameters:,} parameters, {quantity(result.source_macs)} MACs; accuracy "
        f"{percent(result.source_accuracy)} before it was made dynamic. Digits: {digits['train']} to train, "
        f"{digits['validation']} to choose epoch and cost, {digits['test']} to test.",
        "Time: relative to the source network, eager, one thread, "
        f"batch {config.batch} (a call with a single 8x8 image mostly measures Python). "
        f"Median ± half the quartile distance of {config.pairs} interleaved pairs.",
        f"Max diff: of logits to the dynamic model on the same route, all test digits; "
        f"{percent(same)} same predictions.",
        f"Contract: all {len(result.contract)} invariants hold after training. "
        f"Took {sum(result.seconds.values()):.0f} s.",
    )
