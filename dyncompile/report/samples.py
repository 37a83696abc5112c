"""The cheapest and the dearest samples of a data set, as the decision nets see them, with their pictures."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from dyncompile.policies import Learned
from dyncompile.program import Choice, Domain
from dyncompile.report.patterns import fold, template
from dyncompile.runtime.model import DynamicModel
from dyncompile.train.accelerated import world
from dyncompile.train.batches import LABELS
from dyncompile.train.columns import evaluating
from dyncompile.train.data import Feed, Layout, open_stream
from dyncompile.train.objectives import logits_of
from dyncompile.train.phase import Batch


@dataclass(frozen=True)
class Sample:
    """One sample.

    Attributes:
        share: of the source's MACs, decision nets included.
        route: in words.
        image: its picture [C, H, W] if it is one.
        label, predicted: classes by number; None where a sample has not one label.
    """

    share: float
    route: str
    image: Tensor | None
    label: int | None = None
    predicted: int | None = None


@torch.no_grad()
def extremes(dyn: DynamicModel, data: Any, *, count: int = 6) -> tuple[list[Sample], list[Sample]]:
    """(cheapest, dearest) samples by what their learned routes spend, decisions included."""
    found: list[Sample] = []
    with world(None, (), None) as here, evaluating(dyn):
        stream = open_stream(data, Layout(64, 1, 0, 1, training=False), here)
        for batch in Feed(stream, dyn.program, here.device).epoch(0):
            record = dyn.record(*batch.args, policy=Learned(), execution="sparse", **batch.kwargs)
            shares: list[float] = (dyn.spent(record.route) / dyn.static_macs).tolist()  # pyright: ignore
            images, classes = _images(batch), _classes(record.output, batch)
            for row, share in enumerate(shares):
                words = route_in_words({n: rows[row] for n, rows in record.route.items()}, dyn.choices)
                image = None if images is None else images[row].cpu()
                found.append(Sample(share, words, image, *classes[row : row + 1].flatten().tolist()))  # pyright: ignore
            found = _outermost(found, count)
    return found[:count], found[count:][::-1][:count]


def class_names(data: Any) -> tuple[str, ...]:
    """What a data set of torchvision's kind calls its classes, also below a `Subset`; empty if nothing."""
    while isinstance(data, Subset):
        data = data.dataset  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    found: Any = getattr(data, "classes", ())  # pyright: ignore[reportUnknownArgumentType]
    return tuple(map(str, found)) if isinstance(found, list | tuple) else ()  # pyright: ignore


def _outermost(found: list[Sample], count: int) -> list[Sample]:
    """In order of cost, without what lies between the `count` cheapest and the `count` dearest."""
    ordered = sorted(found, key=lambda one: one.share)
    return ordered if len(ordered) <= 2 * count else [*ordered[:count], *ordered[-count:]]


def _images(batch: Batch) -> Tensor | None:
    values = [*batch.args, *batch.kwargs.values()]
    return next((v for v in values if isinstance(v, Tensor) and v.dim() == 4 and v.shape[1] in (1, 3)), None)


def _classes(output: Any, batch: Batch) -> Tensor:
    """(label, predicted class) of each sample [B, 2]; empty rows where samples have not one label each."""
    target = batch.target if batch.target is not None else batch.kwargs.get(LABELS)
    if not isinstance(target, Tensor) or target.dim() != 1 or target.is_floating_point():
        return torch.zeros(0, 2, dtype=torch.long)
    return torch.stack([target, logits_of(output).argmax(-1)], 1).cpu()


def route_in_words(row: Mapping[str, Tensor], choices: Mapping[str, Choice]) -> str:
    """One sample's decisions [width] by choice; names that differ in numbers only are put together."""
    alike: dict[str, list[str]] = {}
    for name in row:
        alike.setdefault(template(name), []).append(name)
    return "; ".join(
        f"{fold(names)}: {_words([choices[n] for n in names], [row[n] for n in names])}"
        for names in alike.values()
    )


def _words(choices: Sequence[Choice], rows: Sequence[Tensor]) -> str:
    domain = choices[0].domain
    if domain in (Domain.ONE_HOT, Domain.SIMPLEX):
        return ", ".join(_column(choice, row) for choice, row in zip(choices, rows, strict=True))
    if domain is Domain.EXIT:
        return ", ".join("stops" if bool(row.any()) else "goes on" for row in rows)
    if domain is Domain.MIXTURE:
        return f"{sum(map(len, rows))} coefficients"
    return f"{sum(int((row > 0).sum()) for row in rows)} of {sum(map(len, rows))} on"


def _column(choice: Choice, row: Tensor) -> str:
    """The column that is picked, or those that weigh."""
    columns = [int(i) for i in row.nonzero().flatten()] or [int(row.argmax())]
    return " + ".join(choice.labels[i] if choice.labels else str(i) for i in columns)


def data_uri(image: Tensor) -> str:
    """A picture [C, H, W] (C is 1 or 3), from its smallest to its largest value, as ``data:image/png``."""
    low, reach = image.min(), (image.max() - image.min()).clamp(min=1e-9)
    pixels = ((image.float() - low) / reach * 255).byte().permute(1, 2, 0).contiguous()
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + bytes(row.flatten().tolist()) for row in pixels)  # pyright: ignore
    kind = 2 if channels == 3 else 0
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    png = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, content) for name, content in parts)
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
