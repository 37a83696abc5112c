"""MACs against time, column by column, and why time falls less where it does.

    saved MACs = 1 - MACs(column) / MACs(source)                        all other choices at full
    saved time = (time(full) - time(column)) / time(source)
    realized   = saved time / saved MACs                                1: time falls as MACs do

Where little is realized at a choice's cheapest column, the time of contractions and of everything else tells
which of the two does not shrink. Times are predictions of a measured `Latency`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dyncompile.deploy.deployed import Deployed
from dyncompile.latency.axes import spread_row
from dyncompile.latency.model import Latency, ends
from dyncompile.policies import Full, Smallest
from dyncompile.program import SWITCHES, Choice, Domain, Route
from dyncompile.runtime.model import DynamicModel, as_dynamic

_FEW = 8
"""Switches that are looked at one by one; of more, shares of them."""
_LITTLE = 0.6
"""Less than this part of the MACs' saving in time is called little."""
_HARDLY = 0.02
"""A saving of MACs below which a choice has next to nothing to decide."""
_LANES = 8
"""Floats in a vector register of 256 bits: kernels work on channels in such blocks, or larger ones."""
_SHORT = 50e-6
"""Seconds of a contraction below which calling it, not computing it, takes a good part of the time."""


@dataclass(frozen=True)
class ProfileRow:
    """One setting of one choice, all others at full capacity.

    Attributes:
        choice, label: which setting.
        macs: share of the source's MACs.
        time: share of the source's time.
        realized: saved time over saved MACs; None where no MACs are saved.
    """

    choice: str
    label: str
    macs: float
    time: float
    realized: float | None


@dataclass(frozen=True)
class Finding:
    """Where no gain is to be had, why, and what may help. `choice` is empty for the whole model."""

    choice: str
    reason: str
    suggestion: str

    def __str__(self) -> str:
        where = f"{self.choice}: " if self.choice else ""
        return f"{where}{self.reason}; {self.suggestion}"


@dataclass(frozen=True)
class Profile:
    """MACs and time of a dynamic model. Shares are of the source: its MACs, its time as a static graph.

    Attributes:
        device, batch, threads, clock: where and how times were measured.
        source: seconds per sample of the source.
        full: share of time at full capacity, no decision net asked.
        learned_full: the same with decision nets asked.
        smallest: (MACs, time) with all choices at their cheapest, no decision net asked.
        contractions: part of the time at full capacity that is in operators whose MACs are counted.
        rows: settings of the choices.
        findings: where no gain is to be had.
    """

    device: str
    batch: int
    threads: int
    clock: str
    source: float
    full: float
    learned_full: float
    smallest: tuple[float, float]
    contractions: float
    rows: tuple[ProfileRow, ...]
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        return "\n".join(_text(self))


@dataclass(frozen=True)
class _Setting:
    choice: Choice
    label: str
    route: Route


def profile(
    dyn: DynamicModel, inputs: Any = None, *, batch: int = 1, latency: Latency | None = None
) -> Profile:
    """Compare MACs and time of every setting of every choice on this device.

    Args:
        dyn: any dynamic model; a deployed one has its norms folded, and so has the source that it is
            compared with.
        inputs: a batch to time with, as `dynamize` takes example inputs; None takes random numbers.
        batch: rows per call of these.
        latency: times that are known already, of this model; else they are measured, or read from the cache.

    Raises:
        InputError: `inputs` do not fit the model.
    """
    dyn = as_dynamic(dyn)
    times = Latency(dyn, batch=batch, inputs=inputs) if latency is None else latency
    full, smallest = ends(dyn.choices, Full()), ends(dyn.choices, Smallest())
    settings = [
        _Setting(choice, label, {**full, choice.name: torch.tensor([row])})
        for choice in dyn.choices.values()
        for label, row in _settings(choice)
    ]
    compared = _Compared(dyn, times, full)
    split = times.split(full)
    return Profile(
        device=times.key.device,
        batch=times.batch,
        threads=times.key.threads,
        clock=times.key.clock,
        source=times.source,
        full=compared.time(full),
        learned_full=float(times.spent(full)[0]) / times.source,
        smallest=(compared.macs(smallest), compared.time(smallest)),
        contractions=split.contractions / split.total,
        rows=tuple(map(compared.row, settings)),
        findings=tuple(_findings(compared, settings, smallest)),
    )


def _settings(choice: Choice) -> Iterator[tuple[str, Sequence[float]]]:
    """Labels and rows worth a look; none of a mixture, whose numbers drop nothing."""
    labels = choice.labels or tuple(map(str, range(choice.width)))
    if choice.domain in (Domain.ONE_HOT, Domain.SIMPLEX):
        yield from zip(labels, map(choice.row, range(choice.width)), strict=True)
    elif choice.domain is Domain.EXIT:
        yield "leaves", choice.smallest
    elif choice.domain in SWITCHES and choice.width > _FEW:
        for part in (0.25, 0.5, 0.75):
            yield f"{part:.0%} on", spread_row(choice.width, max(1, round(part * choice.width)))
    elif choice.domain in SWITCHES:
        for column, label in enumerate(labels):
            row = [0.0 if i == column else value for i, value in enumerate(choice.full)]
            yield f"without {label}" if choice.width > 1 else "off", row


@dataclass(frozen=True)
class _Compared:
    """A model's routes in both currencies."""

    dyn: DynamicModel
    times: Latency
    full: Route

    def macs(self, route: Route) -> float:
        """Share of the source's MACs."""
        return float(self.dyn.macs(route)[0]) / self.dyn.static_macs

    def time(self, route: Route) -> float:
        """Share of the source's time."""
        return float(self.times(route)[0]) / self.times.source

    def row(self, setting: _Setting) -> ProfileRow:
        """What a setting saves in both."""
        macs, time = self.macs(setting.route), self.time(setting.route)
        saved = 1 - macs
        realized = (self.time(self.full) - time) / saved if saved > 1e-9 else None
        return ProfileRow(setting.choice.name, setting.label, macs, time, realized)


# -- findings ---------------------------------------------------------------------------------------


def _findings(one: _Compared, settings: Sequence[_Setting], smallest: Route) -> Iterator[Finding]:
    yield from _of_model(one, smallest)
    for choice in one.dyn.choices.values():
        mine = [setting for setting in settings if setting.choice is choice]
        if mine:
            yield from _of_choice(one, min(mine, key=lambda setting: one.macs(setting.route)))


def _of_model(one: _Compared, smallest: Route) -> Iterator[Finding]:
    """What being dynamic costs, against what it can save."""
    full = one.time(one.full)
    if full > 1.05:
        fix = "a larger batch spreads it" + (
            "" if isinstance(one.dyn, Deployed) else ", dc.deploy saves some"
        )
        yield Finding("", f"at full capacity the dynamic model takes {full:.2f} of the source's time", fix)
    least = one.time(smallest)
    asking = float(one.times.spent(one.full)[0]) / one.times.source - full
    if one.dyn.gated and asking > max(0.0, 1 - least) / 2:
        yield Finding(
            "",
            f"asking the decision nets takes {asking:.1%} of the source's time, and the cheapest route saves "
            f"{max(0.0, 1 - least):.1%}",
            "decide less often (one choice per stage or model), or take a larger batch",
        )


def _of_choice(one: _Compared, setting: _Setting) -> Iterator[Finding]:
    """Why the cheapest setting of a choice saves less time than MACs."""
    row, name = one.row(setting), setting.choice.name
    saved = 1 - row.macs
    if row.realized is None or saved < _HARDLY:
        fix = "let it decide more, or leave it out"
        yield Finding(name, f"it decides {max(saved, 0):.1%} of the source's MACs at most", fix)
        return
    if row.realized >= _LITTLE:
        return
    before, after = one.times.split(one.full), one.times.split(setting.route)
    expected = before.contractions * saved
    gained = max(0.0, row.realized * saved)
    told = f"at {setting.label} {saved:.0%} of the MACs are saved, and {gained:.0%} of the time"
    if before.contractions - after.contractions < _LITTLE * expected:
        yield Finding(
            name, f"{told}: contractions do not get faster as their MACs fall", _remedy(one, setting)
        )
    else:
        rest = 1 - before.contractions / before.total
        yield Finding(
            name,
            f"{told}: {rest:.0%} of the time at full capacity is in what has no MACs (norms, activations, "
            "copies, calls)",
            "fuse it (dc.deploy folds batch norms, torch.compile the rest), or take a larger batch",
        )


def _remedy(one: _Compared, setting: _Setting) -> str:
    """What to do about contractions that do not get faster."""
    name = setting.choice.name
    sizes = [
        sized.sizes[int(setting.route[name][0].argmax())]
        for sized in one.dyn.program.sized.values()
        if sized.choice == name
    ]
    ragged = sum(size % _LANES != 0 for size in sizes)
    if ragged:
        return f"{ragged} of {len(sizes)} widths are no multiples of {_LANES}: round them (divisor=16)"
    each = one.times.mean_contraction(one.full)
    if each < _SHORT:
        return f"they take {each * 1e6:.0f} us each, mostly their calls: take a larger batch"
    return "offer fewer and coarser columns, or drop whole branches instead"


# -- text -------------------------------------------------------------------------------------------

COLUMNS = ("choice", "setting", "MACs", "time", "realized")


def cells(row: ProfileRow) -> tuple[str, ...]:
    """A row in words, under `COLUMNS`."""
    realized = "" if row.realized is None else f"{row.realized:.2f}"
    return row.choice, row.label, f"{row.macs:.1%}", f"{row.time:.1%}", realized


def summary(one: Profile) -> list[str]:
    """Lines about the model as a whole."""
    threads = f"{one.threads} thread{'s' if one.threads != 1 else ''}"
    macs, time = one.smallest
    return [
        f"{one.device}, {threads}, batch {one.batch}, {one.clock} clock; the source takes "
        f"{one.source * 1e3:.3g} ms per sample",
        f"full capacity {one.full:.1%} of its time, {one.learned_full:.1%} with decision nets asked; "
        f"everything at its cheapest {time:.1%} at {macs:.1%} of the MACs; "
        f"{one.contractions:.0%} of the time is in contractions",
    ]


def _text(one: Profile) -> Iterator[str]:
    yield from summary(one)
    lines = [COLUMNS, *map(cells, one.rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
    yield from (f"no gain: {finding}" for finding in one.findings)
