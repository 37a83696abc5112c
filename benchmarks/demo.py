"""The demonstration of the README: `dyncompile demo` with its defaults."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from benchmarks.record import write
from dyncompile.demo import run_demo


def run() -> dict[str, Any]:
    """Accuracy, MACs and time of every width, and of the gate's choices."""
    torch.set_num_threads(1)
    found = run_demo()
    write("demo", asdict(found))
    rows = {width.label: (width.macs_share, width.accuracy) for width in found.widths}
    rows["gated"] = (found.learned.macs_share, found.learned.accuracy)
    return {label: f"{share:.1%} of the MACs, {accuracy:.1%}" for label, (share, accuracy) in rows.items()}
