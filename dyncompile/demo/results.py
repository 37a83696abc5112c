"""What a run of the demonstration found, as data."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from dyncompile.demo.config import DemoConfig
from dyncompile.errors import DyncompileError
from dyncompile.latency import Comparison


@dataclass(frozen=True, slots=True)
class WidthResult:
    """One width, specialized to a plain static graph.

    Attributes:
        macs: multiply-accumulates per image.
        macs_share, parameters: relative to the source; elements that the static graph holds.
        latency: of the static graph against the source network, both in eager PyTorch.
        accuracy: share of the test digits that the static graph names right.
        difference: largest absolute difference of test logits to those of the dynamic model on this route.
        same_predictions: share of the test digits on which both name the same class.
    """

    label: str
    macs: float
    macs_share: float
    parameters: int
    latency: Comparison
    accuracy: float
    difference: float
    same_predictions: float


@dataclass(frozen=True, slots=True)
class LearnedResult:
    """What the decision net makes of the test digits.

    Attributes:
        macs_share: mean over the images relative to the source, the decision net included.
        latency: of the dynamic model, which groups images by width, against the source network.
        accuracy: share of the test digits that are named right.
        shuffled_accuracy: the same if the chosen widths are dealt out to the images at random.
        use: share of the images per width, by label.
    """

    macs_share: float
    latency: Comparison
    accuracy: float
    shuffled_accuracy: float
    use: dict[str, float]


@dataclass(frozen=True, slots=True)
class DemoResult:
    """A whole run.

    Attributes:
        digits: number of images per part of the split.
        source_accuracy: of the static network on the test digits, before anything was made dynamic.
        contract: lines of `verify`'s report on the trained dynamic model.
        seconds: wall time per stage.
    """

    config: DemoConfig
    torch: str
    digits: dict[str, int]
    source_parameters: int
    source_macs: float
    source_accuracy: float
    widths: tuple[WidthResult, ...]
    learned: LearnedResult
    contract: tuple[str, ...]
    seconds: dict[str, float]

    def write(self, folder: Path) -> Path:
        """Write ``demo.json`` into an existing folder; raises DyncompileError where that fails."""
        path = folder / "demo.json"
        try:
            path.write_text(json.dumps(asdict(self), indent=2) + "\n")
        except OSError as error:
            raise DyncompileError(f"the results cannot be written: {error}", where=str(path)) from None
        return path
