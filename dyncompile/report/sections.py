"""The layout of an explanation: titled rows that both the plain-text and the rich rendering print."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dyncompile.report.explanation import ChoiceSummary, Explanation, ReasonGroup
from dyncompile.report.patterns import patterns

_FEW = 3
_SOME = 12
"""How many patterns of names, and how many choices, are printed unless everything is asked for."""


@dataclass(frozen=True, slots=True)
class Row:
    """Cells under the section's columns, and lines of detail below them."""

    cells: tuple[str, ...]
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Section:
    """A titled table; `columns` may be empty."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def sections(one: Explanation, *, verbose: bool = False) -> list[Section]:
    """All sections with something in them, in reading order. `verbose` lists every name."""
    found = [
        Section("Source", (), tuple(_source(one))),
        Section("Passes", ("spec", "sites", "rejected"), tuple(_passes(one))),
        Section("Coverage", ("share of the source", "parameters", "MACs"), tuple(_coverage(one))),
        Section(
            "Choices",
            ("name", "sites", "columns", "MACs", "parameters", "decided by"),
            tuple(_choices(one, verbose=verbose)),
        ),
        Section("Sites", ("where", "count", "choice", "how"), tuple(_sites(one, verbose=verbose))),
        _reasons("Rejected", one.rejections, verbose=verbose),
        _reasons("Other static axes", one.static, verbose=verbose),
        Section("Operators without a rule", (), tuple(_unknown(one, verbose=verbose))),
        Section(
            "Cost not modeled", (), tuple(Row((name, f"{n} nodes")) for name, n in one.unmodeled.items())
        ),
        _reasons("Inference in doubt", one.disagreements, verbose=verbose),
        _reasons("Adds that are no removable branch", one.refusals, verbose=verbose),
        Section("Notes", (), tuple(Row((note,)) for note in one.notes)),
    ]
    return [section for section in found if section.rows]


def quantity(value: float) -> str:
    """A count in three or four digits with its unit prefix: 1.814 G."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g} {prefix}"
    return f"{value:g}"


def percent(share: float) -> str:
    """A share in [0, 1] as a percentage that only reads 100 % when nothing is missing."""
    digits = f"{100 * share:.1f}"
    if digits == "100.0":
        return "100 %" if share == 1 else "> 99.9 %"
    return f"{digits} %"


def _source(one: Explanation) -> Iterator[Row]:
    yield Row(("parameters", f"{one.source.parameters:,}"))
    yield Row(("MACs per sample", quantity(one.source.macs)))
    yield Row(("elastic dims", str(one.source.elastic_dims)))
    yield Row(("residual branches", str(one.source.branches)))
    yield Row(("MACs with all choices at their cheapest", percent(one.smallest_macs)))
    if one.stored_parameters > one.source.parameters:
        full, least = (f"{count:,.0f}" for count in one.active_parameters)
        yield Row(("parameters stored, with what passes inserted", f"{one.stored_parameters:,}"))
        yield Row(("parameters active at full capacity / at the cheapest", f"{full} / {least}"))
    if one.decision_macs:
        yield Row(("MACs of decision nets, on top", quantity(one.decision_macs)))


def _passes(one: Explanation) -> Iterator[Row]:
    for done in one.passes:
        yield Row((done.spec, str(done.sites), str(done.rejections)))


def _coverage(one: Explanation) -> Iterator[Row]:
    cover = one.coverage
    yield Row(("touched by an elastic dim", percent(cover.elastic_parameters), percent(cover.elastic_macs)))
    yield Row(("decided by a choice", percent(cover.controlled_parameters), percent(cover.controlled_macs)))


def _choices(one: Explanation, *, verbose: bool) -> Iterator[Row]:
    shown = one.choices if verbose else one.choices[:_SOME]
    yield from map(_choice, shown)
    if len(shown) < len(one.choices):
        yield Row((f"and {len(one.choices) - len(shown)} more", "", "", "", "", ""))


def _choice(choice: ChoiceSummary) -> Row:
    columns = choice.columns
    return Row(
        (
            f"{choice.name} ({choice.domain})",
            str(choice.sites),
            " / ".join(column.label for column in columns),
            _shares(column.macs for column in columns),
            _shares(column.parameters for column in columns),
            choice.decided,
        )
    )


def _shares(shares: Iterable[float]) -> str:
    return " / ".join(f"{100 * share:.3g}" for share in shares) + " %"


def _sites(one: Explanation, *, verbose: bool) -> Iterator[Row]:
    for group in one.sites:
        details = group.names if verbose and len(group.names) > 1 else ()
        yield Row((group.pattern, str(len(group.names)), group.choice, group.what), details)


def _reasons(title: str, groups: Iterable[ReasonGroup], *, verbose: bool) -> Section:
    rows = [
        Row(
            (f"{len(group.names)} x", group.reason), (*_at(group.line), *_names(group.names, verbose=verbose))
        )
        for group in groups
    ]
    return Section(title, (), tuple(rows))


def _unknown(one: Explanation, *, verbose: bool) -> Iterator[Row]:
    for note in one.unknown:
        froze = _names(note.froze, verbose=verbose) or ("nothing that carries a parameter",)
        first, *rest = froze
        yield Row((note.operator, note.reason), (*_at(note.line), f"froze: {first}", *rest))


def _at(line: str) -> tuple[str, ...]:
    return (f"at {line}",) if line else ()


def _names(names: tuple[str, ...], *, verbose: bool) -> tuple[str, ...]:
    if verbose:
        return names
    found = patterns(names)
    left = sum(len(pattern.names) for pattern in found[_FEW:])
    text = ", ".join(pattern.text for pattern in found[:_FEW])
    return () if not names else (f"{text} and {left} more" if left else text,)
