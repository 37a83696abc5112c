"""A picture of a dynamic model: accuracy against MACs, and the test images that cost least and most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from torch.utils.data import TensorDataset

import dyncompile as dc
from dyncompile.report.samples import Sample, data_uri, extremes

WIDTH, HEIGHT, LEFT, TOP, PLOT, SIDE = 560, 470, 60, 50, 220, 56


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
    parts = [*_plot(title, points), *_images(0, "least", cheap), *_images(1, "most", dear)]
    size = f'width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12"'
    path = Path("out", "examples", f"{name}.svg")
    path.parent.mkdir(parents=True, exist_ok=True)
    body = "\n".join(['<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>"])
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n{body}\n')
    print(f"picture: {path}")
    return path


def _plot(title: str, points: Mapping[str, tuple[float, float]]) -> Iterator[str]:
    low = min(accuracy for _, accuracy in points.values()) - 0.01
    most = max(1.0, *(share for share, _ in points.values()))
    base, reach = TOP + PLOT, WIDTH - LEFT - 180
    yield f'<text x="{LEFT}" y="22" font-size="15">{escape(title)}</text>'
    yield f'<path d="M{LEFT} {TOP} V{base} H{LEFT + reach}" stroke="#999" fill="none"/>'
    yield f'<text x="{LEFT}" y="{TOP - 8}">accuracy from {low:.1%} to 100 %, MACs from 0 to {most:.0%}</text>'
    for label, (share, accuracy) in points.items():
        x, y = LEFT + reach * share / most, base - PLOT * (accuracy - low) / (1 - low)
        color = "#c0392b" if label == "learned" else "#0b62a4"
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{color}"/>'
        said = f"{label}: {accuracy:.1%}, {share:.0%}"
        yield f'<text x="{x + 8:.1f}" y="{y + 4:.1f}" fill="{color}">{escape(said)}</text>'


def _images(row: int, word: str, samples: Sequence[Sample]) -> Iterator[str]:
    y = TOP + PLOT + 40 + row * (SIDE + 32)
    yield f'<text x="8" y="{y + SIDE / 2}">{word}</text>'
    for i, one in enumerate(samples):
        x, pixels = LEFT + i * (SIDE + 22), "" if one.image is None else data_uri(one.image)
        yield f'<image x="{x}" y="{y}" width="{SIDE}" href="{pixels}" style="image-rendering: pixelated"/>'
        yield f'<text x="{x}" y="{y + SIDE + 14}">{one.share:.0%}</text>'
