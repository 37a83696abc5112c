"""The cheapest and the dearest samples of a data set, as the decision nets see them, with their pictures."""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dyncompile.policies import Learned
from dyncompile.program import Choice, Domain
from dyncompile.runtime.model import DynamicModel
from dyncompile.train.accelerated import world
from dyncompile.train.columns import evaluating
from dyncompile.train.data import Feed, Layout, open_stream
from dyncompile.train.phase import Batch


@dataclass(frozen=True)
class Sample:
    """One sample: its share of the source's MACs, its route in words, its picture [C, H, W] if it is one."""

    share: float
    route: str
    image: Tensor | None


@torch.no_grad()
def extremes(dyn: DynamicModel, data: Any, *, count: int = 6) -> tuple[list[Sample], list[Sample]]:
    """(cheapest, dearest) samples by the MACs of their learned routes, decision nets not included."""
    found: list[Sample] = []
    with world(None, (), None) as here, evaluating(dyn):
        stream = open_stream(data, Layout(64, 1, 0, 1, training=False), here)
        for batch in Feed(stream, dyn.program, here.device).epoch(0):
            record = dyn.record(*batch.args, policy=Learned(), execution="sparse", **batch.kwargs)
            shares: list[float] = (dyn.macs(record.route) / dyn.static_macs).tolist()  # pyright: ignore
            images = _images(batch)
            for row, share in enumerate(shares):
                words = ", ".join(
                    f"{name} {_word(dyn.choices[name], rows[row])}" for name, rows in record.route.items()
                )
                found.append(Sample(share, words, None if images is None else images[row].cpu()))
            found = _outermost(found, count)
    return found[:count], found[count:][::-1][:count]


def _outermost(found: list[Sample], count: int) -> list[Sample]:
    """In order of cost, without what lies between the `count` cheapest and the `count` dearest."""
    ordered = sorted(found, key=lambda one: one.share)
    return ordered if len(ordered) <= 2 * count else [*ordered[:count], *ordered[-count:]]


def _images(batch: Batch) -> Tensor | None:
    values = [*batch.args, *batch.kwargs.values()]
    return next((v for v in values if isinstance(v, Tensor) and v.dim() == 4 and v.shape[1] in (1, 3)), None)


def _word(choice: Choice, row: Tensor) -> str:
    if choice.domain is not Domain.ONE_HOT:
        return f"{int((row > 0).sum())} of {choice.width} on"
    column = int(row.argmax())
    return choice.labels[column] if choice.labels else str(column)


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
