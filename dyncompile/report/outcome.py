"""Results as parts of the page: the trade-off, the use of every choice, easy and hard samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from dyncompile.report.charts import Axis, Series, around, plot
from dyncompile.report.evaluation import Evaluation
from dyncompile.report.explanation import Explanation
from dyncompile.report.results import LEARNED, Results
from dyncompile.report.samples import Sample, data_uri
from dyncompile.report.sections import percent, quantity
from dyncompile.report.tables import table
from dyncompile.runtime.model import DynamicModel

_COARSE = 64
"""Pictures of fewer pixels per side are shown with their pixels."""
_OPEN = 24
"""Of more choices the use is shown on demand."""


def summary(dyn: DynamicModel, one: Explanation, results: Results | None) -> Iterator[tuple[str, str]]:
    """(number, what it is) for the top of the page."""
    if results is not None and results.learned is not None:
        learned = results.learned
        yield percent(learned.accuracy), f"accuracy, as decided, {learned.samples:,} samples"
        yield percent(learned.macs), "of the source's MACs, as decided, decision nets included"
        yield percent(learned.parameters), "of the source's parameters are read for a sample, as decided"
    if results is not None:
        full = max(results.fixed.values(), key=lambda found: found.macs)
        yield percent(full.accuracy), "accuracy at full capacity"
    yield quantity(one.source.macs), f"MACs of the source, {one.source.parameters:,} parameters"
    yield percent(one.smallest_macs), "of the MACs with all choices at their cheapest"
    yield percent(one.coverage.controlled_macs), "of the MACs are decided by a choice"
    yield str(len(one.choices)), f"choices, {len(dyn.gated)} with a decision net"


def outcome(dyn: DynamicModel, results: Results) -> dict[str, str]:
    """Parts of the page by title."""
    parts = {"Accuracy against MACs": "".join(_tradeoff(results))}
    if results.learned is not None:
        parts["Use of each choice"] = _use(results.learned.use)
    for title, samples in (("Easy samples", results.easy), ("Hard samples", results.hard)):
        if samples:
            parts[title] = (
                f"<div class='samples'>{''.join(_figure(one, results.classes) for one in samples)}</div>"
            )
    return parts


def _tradeoff(results: Results) -> Iterator[str]:
    some = next(iter(results.fixed.values()))
    yield f"<p class='note'>{some.samples:,} samples. MACs are relative to the source."
    if results.shifted:
        yield " The line is that of the decision nets with a price of computation taken off their logits."
    yield "</p><p class='legend'><span><i class='key fixed'></i>every sample alike</span>"
    if results.learned is not None:
        yield "<span><i class='key gated'></i>decided per sample</span>"
    yield "</p>"
    every = [*results.fixed.values(), *results.shifted, *([results.learned] if results.learned else [])]
    x = Axis("MACs", 0.0, 1.1 * max(one.macs for one in every), percent=True)
    yield plot(x, around("accuracy", [one.accuracy for one in every], percent=True), list(_series(results)))
    named = {**results.fixed, **({LEARNED: results.learned} if results.learned else {})}
    rows = ((name, percent(one.macs), percent(one.accuracy)) for name, one in named.items())
    yield table(("decided by", "MACs", "accuracy"), rows, numbers=(1, 2))


def _series(results: Results) -> Iterator[Series]:
    yield Series("fixed", [_point(one) for one in results.fixed.values()], list(results.fixed))
    if results.learned is not None:
        line = sorted(map(_point, (*results.shifted, results.learned)))
        yield Series("gated", line, dots=False)
        yield Series("gated", [_point(results.learned)], [LEARNED], below=True)


def _point(one: Evaluation) -> tuple[float, float]:
    return one.macs, one.accuracy


def _use(use: Mapping[str, Mapping[str, float]]) -> str:
    rows = "".join(
        f"<span class='mono'>{escape(name)}</span><div class='stack'>{''.join(_parts(shares))}</div>"
        for name, shares in use.items()
    )
    shown = f"<div class='use'>{rows}</div>"
    note = "<p class='note'>Share of the samples that take each column, or for which a part is on.</p>"
    if len(use) > _OPEN:
        shown = f"<details><summary>{len(use)} choices</summary>{shown}</details>"
    return note + shown


def _parts(shares: Mapping[str, float]) -> Iterator[str]:
    """The darker, the later the column; a word where there is room for it."""
    for number, (label, share) in enumerate(shares.items()):
        part = 18 + 62 * (number + 1) // max(len(shares), 2)
        words = f"{label}: {percent(share)}"
        room = share > 0.011 * len(words)
        yield (
            f"<i style='width:{100 * share:.2f}%;--part:{part}%' title='{escape(words, quote=True)}'>"
            f"{escape(words) if room else ''}</i>"
        )


def _figure(sample: Sample, classes: Sequence[str]) -> str:
    picture = ""
    if sample.image is not None:
        coarse = " class='coarse'" if min(sample.image.shape[1:]) < _COARSE else ""
        picture = f"<img alt=''{coarse} src='{data_uri(sample.image)}'>"
    return (
        f"<figure>{picture}<b>{percent(sample.share)}</b> of the MACs{_verdict(sample, classes)}"
        f"<small>{escape(sample.route)}</small></figure>"
    )


def _verdict(sample: Sample, classes: Sequence[str]) -> str:
    if sample.label is None or sample.predicted is None:
        return ""
    label, predicted = (
        escape(classes[i]) if 0 <= i < len(classes) else f"class {i}"
        for i in (sample.label, sample.predicted)
    )
    if sample.label == sample.predicted:
        return f"<br>{label} <span class='right'>✓</span>"
    return f"<br>{label}, taken for <span class='wrong'>{predicted}</span>"
