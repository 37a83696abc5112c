"""The sweep over third-party models in one paragraph of figures."""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks.tables.markdown import block, percent, read, short, source, table

_EXACT = {
    "outputs": "eval_difference",
    "outputs in training": "train_difference",
    "gradients": "gradient_difference",
    "buffers after a step": "buffer_difference",
}
_COMMAND = "make zoo"
_LIBRARIES = ("timm", "torchvision", "hf")


def render(results: Path) -> str:
    """How many models of each library equal their source bit for bit, and what can move in them."""
    found = {name: one for name, one in read(results, "zoo", _COMMAND).items() if "error" not in one}
    rows = [
        (
            library,
            str(len(own)),
            *(str(sum(one[key] == 0 for one in own)) for key in _EXACT.values()),
            percent(statistics.fmean(one["covered"] for one in own) / 100),
            percent(statistics.median(one["smallest_macs"] for one in own)),
        )
        for library in _LIBRARIES
        if (own := [one for name, one in found.items() if name.startswith(library + ":")])
    ]
    apart = [
        f"{short(name)}: {what}, {one[key]:.0e}"
        for name, one in found.items()
        for what, key in _EXACT.items()
        if one[key]
    ]
    note = (
        "Models of random weights, many at reduced sizes; the columns after the first count those in which "
        "the dynamic network at full capacity gives what the source gives, bit for bit"
        + (f" (not: {'; '.join(apart)})" if apart else "")
        + ". Parameters: those in a dim that can move, mean. Smallest: MACs of the narrowest network behind "
        "a gate over the source's, median."
    )
    heads = ("models of", "", *_EXACT, "parameters", "smallest")
    return block(table(heads, rows), note, source(_COMMAND))
