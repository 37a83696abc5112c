"""Static networks as files that run elsewhere: ``.pt2`` (torch.export) and ``.onnx``.

A file is run and compared with the network before it gets its name.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from dyncompile.deploy.exports.formats import Call, check_format, write_file
from dyncompile.deploy.exports.samples import (
    difference,
    free_batch,
    named_inputs,
    some_rows,
    tensors_of,
)
from dyncompile.errors import DyncompileError
from dyncompile.files import ASIDE
from dyncompile.signature import Signature

_TRACED = 3
"""Samples to trace with: a batch of one would be taken for a fixed size."""


@dataclass(frozen=True, slots=True)
class Written:
    """A file, and how far its outputs are from the network's: largest absolute difference."""

    path: Path
    bytes: int
    difference: float


def write_static(
    static: fx.GraphModule,
    signature: Signature,
    path: Path,
    file_format: str,
    samples: Sequence[Any],
) -> Written:
    """Write a specialized network; any batch size, every other size fixed.

    Args:
        static: what `specialize` gave.
        signature: of the model that it came from.
        path: is replaced as a whole.
        file_format: "pt2" or "onnx".
        samples: flat inputs to compare on.

    Raises:
        SpecError: an unknown format, or onnx is not installed.
        DyncompileError: the exporter refuses the network, or the file cannot be written.
        ContractError: the file computes something else; nothing is written.
    """
    check_format(file_format)
    traced = named_inputs(signature, some_rows(signature, samples, _TRACED))

    def write(made: Path) -> float:
        run = write_file(static, Call(traced, free_batch(signature)), made, file_format)
        output = static(**named_inputs(signature, samples))
        expected = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
        return difference([leaf.detach() for leaf in expected], run(tensors_of(signature, samples)))

    return write_aside(path, write)


def write_aside(path: Path, write: Callable[[Path], float]) -> Written:
    """Let `write` write and check a file; it gets its name if that succeeds. Raises DyncompileError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=ASIDE) as aside:
            made = Path(aside) / path.name
            apart = write(made)
            size = made.stat().st_size
            os.replace(made, path)
    except OSError as error:
        raise DyncompileError(f"the file cannot be written: {error}", where=str(path)) from None
    return Written(path, size, apart)
