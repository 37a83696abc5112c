"""Static networks as files that run elsewhere: ``.pt2`` (torch.export) and ``.onnx``.

A file is run and compared with the network before it gets its name.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from dyncompile.deploy.exports.formats import Call, check_format, write_file
from dyncompile.deploy.exports.samples import difference, free_batch, named_inputs, random_inputs, tensors_of
from dyncompile.errors import DyncompileError
from dyncompile.files import ASIDE
from dyncompile.signature import Signature


@dataclass(frozen=True, slots=True)
class Written:
    """A file, and how far its outputs are from the network's: largest absolute difference."""

    path: Path
    bytes: int
    difference: float


def write_static(static: fx.GraphModule, signature: Signature, path: Path, file_format: str) -> Written:
    """Write a specialized network; any batch size, every other size fixed.

    Args:
        static: what `specialize` gave.
        signature: of the model that it came from.
        path: is replaced as a whole.
        file_format: "pt2" or "onnx".

    Raises:
        SpecError: an unknown format, or onnx is not installed.
        DyncompileError: the exporter refuses the network, or the file cannot be written.
        ContractError: the file computes something else; nothing is written.
    """
    check_format(file_format)
    flat = random_inputs(signature, 3)
    named = named_inputs(signature, flat)

    def write(made: Path) -> float:
        run = write_file(static, Call(named, free_batch(signature)), made, file_format)
        expected = [leaf for leaf in pytree.tree_leaves(static(**named)) if isinstance(leaf, Tensor)]
        return difference([leaf.detach() for leaf in expected], run(tensors_of(signature, flat)))

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
