"""Speed on every processor that there are results of, side by side."""

from __future__ import annotations

from pathlib import Path

from benchmarks.record import plain
from benchmarks.tables.highlights import speed_rows
from benchmarks.tables.markdown import block, read, table


def processors(results: Path) -> dict[str, Path]:
    """Name -> folder of results, that of all the other results first; of one name, the first of them."""
    found: dict[str, Path] = {}
    for folder in (results, *sorted((results / "processors").glob("*"))):
        found.setdefault(plain(read(folder, "resolution")["machine"]["processor"]), folder)
    return found


def render(results: Path) -> str:
    """The table of real time, one column per processor."""
    rows = {name: {row[0]: row[1:] for row in speed_rows(one)} for name, one in processors(results).items()}
    first = next(iter(rows.values()))
    cells = [
        (case, macs, *(f"{own[case][1]}, {own[case][2]}" if case in own else "-" for own in rows.values()))
        for case, (macs, *_) in first.items()
    ]
    note = "CPU time over the source's, and over that of the same model at full capacity, as in the README."
    command = (
        "`python -m benchmarks deployment skipping resolution`, on others than the first with `--beside`."
    )
    return block(table(("deployed", "MACs", *rows), cells), note, command)
