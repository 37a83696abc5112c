"""A dynamic model as one HTML page that needs no network and runs no script: text, tables, inline SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from html import escape
from importlib.resources import files
from typing import Any

from dyncompile.report.charts import Series, around, plot
from dyncompile.report.diagram import draw, legend
from dyncompile.report.explanation import ChoiceSummary, Explanation, explain
from dyncompile.report.folding import folded
from dyncompile.report.network import network_of
from dyncompile.report.outcome import outcome, summary
from dyncompile.report.results import Watch, measure
from dyncompile.report.sections import Section, percent, quantity, sections
from dyncompile.report.tables import table
from dyncompile.runtime.model import DynamicModel
from dyncompile.train.history import History

_CLOSED = ("Sites", "Other static axes", "Adds that are no removable branch", "Notes")
"""Long lists that open on demand."""
_DRAWN = ("Source", "Choices")
"""Sections of the explanation that the page shows in a way of its own."""
_STEPS = 400
"""Points of a curve of losses, at most."""


def build_report(
    dyn: DynamicModel,
    data: Any = None,
    history: History | None = None,
    *,
    title: str = "",
    watch: Watch = lambda stage, done, total: None,
) -> str:
    """The page.

    Args:
        dyn: any dynamic model.
        data: labeled samples to measure on; None leaves results out.
        history: of its training; an empty one is left out.
        title: what stands above, by default the passes.
        watch: is told of (stage, done, total) while `data` is measured.

    Raises:
        InputError: data that is empty, cannot be read as batches, or has no labels.
    """
    one = explain(dyn)
    results = None if data is None else measure(dyn, data, watch)
    parts = {"Network": _network(dyn)}
    if results is not None:
        parts |= outcome(dyn, results)
    if history is not None and history.epochs:
        parts["Training"] = "".join(_training(history))
    parts |= {"Costs": _costs(one), **dict(_explained(one))}
    spec = " | ".join(dyn.history)
    head = f"<h1>{escape(title or spec)}</h1>" + (
        f"<p class='mono faint'>{escape(spec)}</p>" if title else ""
    )
    links = "".join(f"<a href='#{_anchor(name)}'>{escape(name)}</a>" for name in parts)
    body = "\n".join(
        f"<section id='{_anchor(name)}'><h2>{escape(name)}</h2>{part}</section>"
        for name, part in parts.items()
    )
    style = files("dyncompile.report").joinpath("style.css").read_text()
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>{escape(title or spec)}: dyncompile report</title><style>\n{style}</style></head>\n"
        f"<body>\n{head}<nav>{links}</nav>\n{_tiles(summary(dyn, one, results))}\n{body}\n</body></html>\n"
    )


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _tiles(numbers: Iterable[tuple[str, str]]) -> str:
    found = "".join(f"<div><b>{escape(n)}</b><small>{escape(what)}</small></div>" for n, what in numbers)
    return f"<div class='tiles'>{found}</div>"


# -- the network ------------------------------------------------------------------------------------


def _network(dyn: DynamicModel) -> str:
    network = network_of(dyn)
    shown = folded(network)
    less = len(network.blocks) - len(shown.blocks)
    said = (
        "From input to output. Bars are shares of the source's MACs, colored where a choice acts; the line "
        "under a diamond ends at the last block that is decided there."
    )
    if less:
        said += f" Blocks that repeat are drawn once: {less} are not shown."
    return f"<p class='note'>{said}</p>{legend(shown)}<div class='wide'>{draw(shown)}</div>"


# -- tables -----------------------------------------------------------------------------------------


def _costs(one: Explanation) -> str:
    """Every column of every choice, the others at full."""
    rows = [row for choice in one.choices for row in _columns(choice)]
    columns = ("choice", "column", "MACs", "parameters", "sites", "decided by")
    shown = table(columns, rows, numbers=(2, 3, 4))
    least = f"All choices at their cheapest: {percent(one.smallest_macs)} of the source's MACs. "
    nets = f"Decision nets add {quantity(one.decision_macs)} MACs per sample." if one.decision_macs else ""
    note = f"<p class='note'>{least}{nets} Shares of the source, all other choices at full.</p>"
    if len(one.choices) > 12:
        shown = f"<details><summary>{len(one.choices)} choices</summary>{shown}</details>"
    return f"{note}<div class='wide'>{shown}</div>"


def _columns(choice: ChoiceSummary) -> Iterator[tuple[str, ...]]:
    for number, column in enumerate(choice.columns):
        first = number == 0
        yield (
            f"{choice.name} ({choice.domain})" if first else "",
            column.label,
            percent(column.macs),
            percent(column.parameters),
            str(choice.sites) if first else "",
            choice.decided if first else "",
        )


def _explained(one: Explanation) -> Iterator[tuple[str, str]]:
    for section in sections(one):
        if section.title in _DRAWN:
            continue
        shown = f"<div class='wide'>{_section(section)}</div>"
        if section.title in _CLOSED:
            shown = f"<details><summary>{len(section.rows)} groups</summary>{shown}</details>"
        yield section.title, shown


def _section(section: Section) -> str:
    rows = ((*row.cells[:-1], (row.cells[-1], *row.details)) for row in section.rows)
    return table(section.columns, rows)


# -- training ---------------------------------------------------------------------------------------


def _training(history: History) -> Iterator[str]:
    minutes = history.seconds / 60
    took = f"{minutes:.0f} minutes" if minutes >= 2 else f"{history.seconds:.0f} s"
    yield f"<p class='note'>{len(history.steps):,} steps, {took}.</p>"
    if len(history.steps) > 1:
        yield _losses(history)
    rows = (
        (
            epoch.phase,
            str(epoch.epoch + 1),
            *(say(epoch.validation[n]) if n in epoch.validation else "" for n, (_, say) in _NUMBERS.items()),
        )
        for epoch in history.epochs
    )
    heads = ("phase", "epoch", *(head for head, _ in _NUMBERS.values()))
    shown = table(heads, rows, numbers=(1, 2, 3, 4))
    open_ = " open" if len(history.epochs) <= 20 else ""
    yield f"<details{open_}><summary>Validation after every epoch</summary>{shown}</details>"


_NUMBERS: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "loss": ("loss", "{:.4g}".format),
    "metric": ("metric", "{:.4g}".format),
    "macs": ("share of MACs", percent),
}
"""What was validated -> its head and how it is written."""


def _losses(history: History) -> str:
    """What was minimized, thinned out; phases have losses of their own and are lines of their own."""
    stride = max(len(history.steps) // _STEPS, 1)
    lines: dict[str, list[tuple[float, float]]] = {}
    for record in history.steps[::stride]:
        if math.isfinite(record.loss):
            lines.setdefault(record.phase, []).append((float(record.step), record.loss))
    values = [loss for line in lines.values() for _, loss in line]
    series = [Series("gated" if n % 2 else "skip", line, dots=False) for n, line in enumerate(lines.values())]
    marks = [(line[0][0], phase) for phase, line in lines.items()]
    steps = around("step", [0.0, float(history.steps[-1].step)], zero=True)
    return plot(steps, around("loss", values), series, marks)
