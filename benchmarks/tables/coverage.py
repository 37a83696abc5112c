"""Coverage beside peers: one line per contender, or one per model."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.coverage import PYTHON, Rows, is_converted, summary
from benchmarks.models import REFERENCE
from benchmarks.tables.markdown import block, percent, read, short, source, table

COMMAND = "make coverage"


def render(results: Path) -> str:
    """Totals over all models; what is not converted counts as 0 in means."""
    found = read(results, "coverage")
    models: Rows = found["models"]
    contenders = [name for name in PYTHON if any(name in row for row in models.values())]
    heads = (
        f"of {len(models)} models",
        "converted",
        "exact at full width",
        "parameters with a choice of width",
        "the same, as a supernet",
        "models with blocks to drop",
        "parameters in these blocks",
        "CPU seconds",
    )
    rows = (_line(name, summary(models, name)) for name in contenders)
    return block(
        table(heads, rows),
        _left(models) + NOTES,
        _missed(models, contenders),
        _caveats(models, contenders, found.get("limits", {})),
        source(COMMAND, found),
    )


def _line(name: str, one: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        name,
        str(one["converted"]),
        "-" if one["exact"] is None else str(one["exact"]),
        percent(one["elastic over all"], 1),
        percent(one["supernet over all"], 1),
        str(one["with blocks"]),
        percent(one["skippable over all"], 1),
        "-" if one["seconds"] is None else f"{one['seconds']:.1f}",
    )


def _left(models: Rows) -> str:
    missing = [name for name in REFERENCE if name not in models]
    return f"Measured so far: {len(models)} of {len(REFERENCE)} models. " if missing else ""


def _missed(models: Rows, contenders: list[str]) -> str:
    lines: list[str] = []
    for name in contenders:
        missed = [model for model, row in models.items() if name in row and not is_converted(row[name])]
        if missed:
            lines.append(f"Not converted by {name}: {', '.join(map(short, missed))}.")
    return "\n".join(lines) or "All models are converted by all."


def _caveats(models: Rows, contenders: list[str], limits: Mapping[str, float]) -> str:
    """What the totals hide: limits that were met, and shares where both convert."""
    lines = ["Nothing is said about a model to any of them: with settings for it, a peer may do more."]
    for name in contenders[1:]:
        rows = [row for row in models.values() if name in row]
        failed = [row[name] for row in rows if not is_converted(row[name])]
        cut = sum(any(mark in str(one) for mark in _CUT) for one in failed)
        if cut:
            most = f"{limits['CPU seconds']:.0f} s of CPU time or {limits['bytes'] / 2**30:.0f} GiB"
            lines.append(f"{cut} of {len(failed)} failures of {name} met the limits of {most}.")
        both = [row for row in rows if is_converted(row[name]) and is_converted(row[contenders[0]])]
        theirs, ours, whole = (
            percent(statistics.fmean(row[who][what] for row in both), 1)
            for who, what in ((name, "elastic"), (contenders[0], "elastic"), (contenders[0], "supernet"))
        )
        lines.append(
            f"On the {len(both)} models that {name} converts, parameters with a choice of width are {theirs} "
            f"of all by it, {ours} by {contenders[0]} behind gates, {whole} as a supernet."
        )
    return " ".join(lines) if len(contenders) > 1 else ""


_CUT = ("not done after", "MemoryError")


def render_models(results: Path) -> str:
    """Every model: share of parameters with a choice of width, blocks, CPU seconds, by contender."""
    found = read(results, "coverage")
    models: Rows = found["models"]
    contenders = [name for name in PYTHON if any(name in row for row in models.values())]
    rows = ((short(model), *(_cell(row.get(name)) for name in contenders)) for model, row in models.items())
    note = "Share of parameters with a choice of width / blocks to drop / CPU seconds."
    return block(table(("model", *contenders), rows), note, source(COMMAND, found))


def _cell(one: Mapping[str, Any] | None) -> str:
    if one is None or not is_converted(one):
        return "-"
    return f"{percent(one['elastic'])} / {one['blocks']} / {one['seconds']:.1f}"


NOTES = """\
Converted: the call returns, something has a choice, and the smallest network gives finite outputs of the
right shapes at a batch size that was not shown. Shares are means over all models, 0 where one is not
converted. dyncompile decides per sample (`dsnet`, then `lcnet(channels=False)` where there are residual
branches), so what stands before a gate is static; as a supernet, exact and run at its smallest as well, it
is `dsnet(gate=False, embedding=True)`. ModelOpt AutoNAS and Torch-Pruning choose one network for all samples;
Torch-Pruning prunes by half, has no full width to return to, and whether attention heads stay whole is not
checked. Blocks: residual branches for dyncompile, members of an `nn.Sequential` for ModelOpt. Seconds are
medians over what is converted."""
