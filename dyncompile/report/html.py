"""A dynamic model as one HTML page that needs no network: text, tables, inline SVG."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Any

from dyncompile.policies import Forced, Learned, Policy
from dyncompile.program import Domain
from dyncompile.report.evaluation import Evaluation, evaluate_policy
from dyncompile.report.explanation import explain
from dyncompile.report.samples import Sample, data_uri, extremes
from dyncompile.report.sections import Section, percent, sections
from dyncompile.runtime.model import DynamicModel
from dyncompile.train.history import History

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem }
h2 { font-size: 1.1rem; margin-top: 2rem; border-bottom: 1px solid #ddd }
table { border-collapse: collapse }
td, th { padding: .1rem .8rem .1rem 0; text-align: left; vertical-align: top }
th { color: #777; font-weight: normal }
small { color: #777; display: block; overflow-wrap: anywhere }
figure { display: inline-block; margin: 0 1rem 1rem 0; max-width: 8rem; vertical-align: top }
img { width: 6rem; image-rendering: pixelated }
svg text { font: 12px system-ui, sans-serif; fill: #444 }
"""
_WIDTH, _HEIGHT, _EDGE = 560, 300, 48


def build_report(dyn: DynamicModel, data: Any = None, history: History | None = None) -> str:
    """The page.

    Args:
        dyn: any dynamic model.
        data: labeled samples to measure on; None leaves results out.
        history: of its training; an empty one is left out.
    """
    parts = [f"<h1>{escape(' | '.join(dyn.history))}</h1>"]
    if data is not None:
        parts += _results(dyn, data)
    if history is not None and history.epochs:
        parts += _training(history)
    parts += [_section(section) for section in sections(explain(dyn))]
    body = "\n".join(parts)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>dyncompile report</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _section(section: Section) -> str:
    rows = ((*row.cells[:-1], (row.cells[-1], *row.details)) for row in section.rows)
    return f"<h2>{escape(section.title)}</h2>{_table(section.columns, rows)}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str | tuple[str, ...]]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(cell: str | tuple[str, ...]) -> str:
    if isinstance(cell, str):
        return escape(cell)
    return escape(cell[0]) + "".join(f"<small>{escape(detail)}</small>" for detail in cell[1:])


# -- results ----------------------------------------------------------------------------------------


def _results(dyn: DynamicModel, data: Any) -> Iterator[str]:
    found = {name: evaluate_policy(dyn, data, policy) for name, policy in _policies(dyn).items()}
    some = next(iter(found.values()))
    yield f"<h2>Accuracy against MACs</h2><p>{some.samples} samples. MACs are relative to the source.</p>"
    yield _scatter(found)
    rows = ((name, percent(one.macs), percent(one.accuracy)) for name, one in found.items())
    yield _table(("decided by", "MACs", "accuracy"), rows)
    if "learned" in found:
        yield "<h2>Use of each choice</h2>"
        yield from (_bars(name, use) for name, use in found["learned"].use.items())
        for title, samples in zip(("Easy", "Hard"), extremes(dyn, data), strict=True):
            yield f"<h2>{title} samples</h2>" + "".join(map(_figure, samples))


def _policies(dyn: DynamicModel) -> dict[str, Policy]:
    """The columns of one-hot choices, all together, and the decision nets."""
    one_hot = [choice for choice in dyn.choices.values() if choice.domain is Domain.ONE_HOT]
    policies: dict[str, Policy] = {}
    for column in range(max((choice.width for choice in one_hot), default=0)):
        columns = {choice.name: min(column, choice.width - 1) for choice in one_hot}
        labels = sorted({c.labels[columns[c.name]] if c.labels else str(column) for c in one_hot})
        policies[" / ".join(labels)] = Forced(dyn.route(columns))
    return {**policies, "learned": Learned()}


def _scatter(found: dict[str, Evaluation]) -> str:
    """Points (MACs, accuracy) with their names; the accuracy axis begins below the lowest."""
    low = max(min(one.accuracy for one in found.values()) - 0.05, 0.0)
    most = max(1.0, *(one.macs for one in found.values()))
    marks: list[str] = []
    for name, one in found.items():
        x = _EDGE + (_WIDTH - 2 * _EDGE) * one.macs / most
        y = _HEIGHT - _EDGE - (_HEIGHT - 2 * _EDGE) * (one.accuracy - low) / (1 - low)
        color = "#c33" if name == "learned" else "#36c"
        marks.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='5' fill='{color}'/>")
        marks.append(f"<text x='{x + 8:.1f}' y='{y - 6:.1f}'>{escape(name)}</text>")
    base, right = _HEIGHT - _EDGE, _WIDTH - _EDGE
    axes = (
        f"<path d='M{_EDGE} {_EDGE} V{base} H{right}' stroke='#999' fill='none'/>"
        f"<text x='{_EDGE}' y='{_EDGE - 10}'>accuracy, {low:.0%} to 100 %</text>"
        f"<text x='{right - 110}' y='{base + 28}'>MACs, 0 to {most:.0%}</text>"
    )
    return f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' width='{_WIDTH}' role='img'>{axes}{''.join(marks)}</svg>"


def _bars(name: str, use: Any) -> str:
    lines: list[str] = []
    for i, (label, share) in enumerate(use.items()):
        lines.append(f"<rect x='140' y='{20 * i}' width='{300 * share:.1f}' height='14' fill='#36c'/>")
        lines.append(f"<text x='0' y='{20 * i + 12}'>{escape(str(label))}</text>")
        lines.append(f"<text x='{146 + 300 * share:.1f}' y='{20 * i + 12}'>{share:.1%}</text>")
    height = 20 * len(use)
    return (
        f"<p>{escape(name)}</p><svg viewBox='0 0 {_WIDTH} {height}' width='{_WIDTH}'>{''.join(lines)}</svg>"
    )


def _figure(sample: Sample) -> str:
    picture = "" if sample.image is None else f"<img alt='' src='{data_uri(sample.image)}'>"
    return f"<figure>{picture}<small>{percent(sample.share)}<br>{escape(sample.route)}</small></figure>"


def _training(history: History) -> Iterator[str]:
    yield f"<h2>Training</h2><p>{len(history.steps)} steps, {history.seconds:.0f} s.</p>"
    rows = (
        (
            epoch.phase,
            str(epoch.epoch + 1),
            *(f"{epoch.validation.get(n, float('nan')):.4g}" for n in _NUMBERS),
        )
        for epoch in history.epochs
    )
    yield _table(("phase", "epoch", *_NUMBERS), rows)


_NUMBERS = ("loss", "metric", "macs")
