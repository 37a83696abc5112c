"""The network of a program at another size of one of its inputs.

Its source is captured once more: the user's own Python runs at the other size, so that padding of windows,
position embeddings and pooling are right. Where a checkpoint was loaded without the source's code, the graphs
are those that it keeps (`dyncompile.stored.sizes`). The result reads the program's own tensors: one state,
several graphs.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dyncompile.capture.export import captured
from dyncompile.errors import CaptureError
from dyncompile.program import Program, size_label
from dyncompile.signature import Leaf, Signature
from dyncompile.state import state_tensors
from dyncompile.torchlib import named_modules, observe_calls, own_buffers, own_parameters
from dyncompile.zoo.sizes import take_size


def recapture(program: Program, image: int, size: tuple[int, int]) -> Program:
    """The network of `program` before any pass, with the flat input `image` [B, C, H, W] at `size`.

    Its parameters and buffers are the tensors of `program`; what the source makes anew for the size (masks of
    attention windows) is not.

    Args:
        program: not yet of several sizes.
        image: position among the flat inputs.
        size: (height, width).

    Raises:
        CaptureError: the network does not take this size, names the module and the source line; or it is not
            kept where the source's code is not at hand.
    """
    if program.source is None:
        raise CaptureError("the sizes of the input are decided already", fix="name all sizes at once")
    found = program.source.sized(program, image, size)
    if _outputs(found) != _outputs(program) or _structures(found) != _structures(program):
        raise CaptureError(
            f"at {size_label(size)} an output has another shape: results of several sizes are no one tensor"
        )
    return found


@dataclass(frozen=True)
class Code:
    """The user's own code, which is captured once more; `skeleton` has its tensors on the meta device."""

    skeleton: nn.Module

    def sized(self, program: Program, image: int, size: tuple[int, int]) -> Program:
        """The module captured at another size. Raises CaptureError."""
        tensors = state_tensors(program.state)
        module = _materialized(self.skeleton, tensors)
        named = _examples(program.signature, image, size, next(iter(tensors.values())).device)
        try:
            take_size(module, size)
            found = captured(module, named)
        except CaptureError as error:
            reason = _refusal(module, program.signature, named) or error.problem
            problem = f"it does not take {size_label(size)}: {reason}"
            raise CaptureError(problem, where=error.where) from error
        _check_parameters(found, program, size)
        return found


def _materialized(skeleton: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """A structural copy of `skeleton` that holds the given tensors, by name."""
    module = copy.deepcopy(skeleton)
    for prefix, owner in named_modules(module):
        lead = f"{prefix}." if prefix else ""
        for registered in (own_parameters(owner), own_buffers(owner)):
            live: dict[str, Any] = registered
            for name, value in live.items():
                if value is not None:
                    live[name] = tensors[lead + name]
    return module


def _examples(
    signature: Signature, image: int, size: tuple[int, int], device: torch.device
) -> dict[str, Any]:
    """Arguments by name; tensors are zeros that take no memory, since only their shapes matter to a trace."""
    fixed = {leaf.shape[0] for leaf in signature.leaves if leaf.shape}
    rows = next(n for n in range(2, len(fixed) + 3) if n not in fixed)  # told apart from all other sizes
    flat = [
        _example(leaf, rows, size if i == image else None, device) for i, leaf in enumerate(signature.leaves)
    ]
    return pytree.tree_unflatten(flat, signature.structure)


def _example(leaf: Leaf, rows: int, size: tuple[int, int] | None, device: torch.device) -> Any:
    if leaf.shape is None:
        return leaf.constant
    shape = [rows if n is None else n for n in leaf.shape]
    shape = shape if size is None else [*shape[:-2], *size]
    return torch.zeros(1, dtype=leaf.dtype, device=device).expand(shape)


def _check_parameters(found: Program, program: Program, size: tuple[int, int]) -> None:
    """The other size has the same parameters. Raises CaptureError."""
    own = dict(program.state.named_parameters(remove_duplicate=False))
    other = dict(found.state.named_parameters(remove_duplicate=False))
    changed = [name for name, value in other.items() if own.get(name) is not value]
    if changed:
        raise CaptureError(f"at {size_label(size)} its library replaces the parameter {changed[0]}")


def _structures(program: Program) -> tuple[Any, Any]:
    return program.signature.out_structure, program.signature.train_structure


def _outputs(program: Program) -> list[Any]:
    """Shapes of the flat outputs without the batch."""
    (output,) = (node for node in program.graphs["eval"].nodes if node.op == "output")
    values = [getattr(value, "meta", {}).get("val", value) for value in output.args[0]]  # pyright: ignore
    return [_sizes(value) if isinstance(value, Tensor) else value for value in values]


def _sizes(value: Tensor) -> list[Any]:
    return [n if type(n) is int else None for n in value.shape]


@torch.no_grad()
def _refusal(module: nn.Module, signature: Signature, named: dict[str, Any]) -> str:
    """The module that refuses these arguments in eager mode, and what it says; empty if none does."""
    running: list[str] = []
    for name, child in named_modules(module):

        def enter(owner: nn.Module, args: Any, name: str = name) -> None:
            running.append(f"`{name}` ({type(owner).__name__})" if name else type(owner).__name__)

        def leave(owner: nn.Module, args: Any, output: Any) -> None:
            running.pop()

        observe_calls(child, enter, leave)
    bound = signature.forward.bind_partial()
    bound.arguments.update(named)
    try:
        module.eval()(*bound.args, **bound.kwargs)
    except Exception as error:  # whatever the user's Python raises is the reason
        text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return f"{running[-1]} says: {text}" if running else text
    return ""
