"""A picture of a dynamic model: accuracy against MACs, and the test images that cost least and most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch.utils.data import TensorDataset

import dyncompile as dc
from dyncompile.report.charts import HEIGHT, Axis, Series, drawing
from dyncompile.report.figure import document, kind
from dyncompile.report.samples import Sample, data_uri, extremes

LEFT, TOP, SIDE = 76, 30, 66
COLORS = "#0b62a4", "#c0392b"  # fixed routes, and learned ones


def draw(
    name: str,
    title: str,
    points: Mapping[str, tuple[float, float]],
    dyn: dc.DynamicModel,
    data: TensorDataset,
) -> Path:
    """Write ``out/examples/NAME.svg`` and print its points (share of MACs, accuracy); returns the path."""
    for label, (share, accuracy) in points.items():
        print(f"{label:>22}: {accuracy:.1%} at {share:.0%} of the MACs")
    cheap, dear = extremes(dyn, data)
    plot = f"<g transform='translate(0 {TOP})'>{_plot(points)}</g>"
    body = "".join((plot, *_images(0, "least", cheap), *_images(1, "most", dear)))
    path = Path("out", "examples", f"{name}.svg")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document(title, body, TOP + HEIGHT + 2 * (SIDE + 32), COLORS))
    print(f"picture: {path}")
    return path


def _plot(points: Mapping[str, tuple[float, float]]) -> str:
    low = min(accuracy for _, accuracy in points.values()) - 0.01
    most = 1.05 * max(1.0, *(share for share, _ in points.values()))
    x, y = Axis("MACs", 0, most, percent=True), Axis("accuracy", low, 1, percent=True)
    return drawing(x, y, [_point(label, *at) for label, at in points.items()])


def _point(label: str, share: float, accuracy: float) -> Series:
    said = f"{label}: {accuracy:.1%}, {share:.0%}"
    return Series(kind(int(label == "learned")), [(share, accuracy)], [said])


def _images(row: int, word: str, samples: Sequence[Sample]) -> Iterator[str]:
    y = TOP + HEIGHT + row * (SIDE + 32)
    yield f'<text x="8" y="{y + SIDE / 2}">{word}</text>'
    for i, one in enumerate(samples):
        x, pixels = LEFT + i * (SIDE + 22), "" if one.image is None else data_uri(one.image)
        yield f'<image x="{x}" y="{y}" width="{SIDE}" href="{pixels}" style="image-rendering: pixelated"/>'
        yield f'<text x="{x}" y="{y + SIDE + 14}">{one.share:.0%}</text>'
