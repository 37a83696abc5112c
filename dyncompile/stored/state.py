"""State of a captured network as data: names, ties, what is saved and what is trained, without the values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dyncompile.program import Program
from dyncompile.state import STATE_PREFIX, put_state
from dyncompile.torchlib import own_buffers, own_modules, own_parameters, transient_buffers


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in the source's state."""

    name: str
    tensor: Tensor
    saved: bool
    tied_to: str | None


def source_state(program: Program) -> Iterator[Entry]:
    """Everything that is not a pass's, in the order of the module tree."""
    graphs = program.origin or program.graphs
    read = {str(node.target) for graph in graphs.values() for node in graph.nodes if node.op == "get_attr"}
    first: dict[int, str] = {}
    for name, tensor, saved in _walk(program.state, ""):
        if not name.startswith(f"{STATE_PREFIX}.") or name in read:
            known = first.setdefault(id(tensor), name)
            yield Entry(name, tensor, saved, None if known == name else known)


def _walk(module: nn.Module, lead: str) -> Iterator[tuple[str, Tensor, bool]]:
    for name, parameter in own_parameters(module).items():
        if parameter is not None:
            yield lead + name, parameter, True
    for name, buffer in own_buffers(module).items():
        if buffer is not None:
            yield lead + name, buffer, name not in transient_buffers(module)
    for name, child in own_modules(module).items():
        if child is not None:
            yield from _walk(child, f"{lead}{name}.")


def constants_of(entries: Iterable[Entry]) -> dict[str, Tensor]:
    """Values of what a state dict leaves out, each tensor once."""
    lone = (entry for entry in entries if not entry.saved and entry.tied_to is None)
    return {entry.name: entry.tensor.detach().cpu().contiguous() for entry in lone}


def describe_entry(entry: Entry, held: str | None = None) -> dict[str, Any]:
    """JSON of a name; `held` is where the checkpoint has its value, if not under this name."""
    described: dict[str, Any] = {"name": entry.name, "saved": entry.saved}
    if held not in (None, entry.name):
        described["held"] = held
    if entry.tied_to is not None:
        described["tied_to"] = entry.tied_to
    if isinstance(entry.tensor, nn.Parameter):
        described["trainable"] = entry.tensor.requires_grad
    return described


def held_names(entries: Any) -> list[str]:
    """Names of the values that `restore_state` takes, from JSON."""
    return [str(entry.get("held", entry["name"])) for entry in entries]


def restore_state(entries: Any, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The module tree of described names. Damage raises KeyError, TypeError, ValueError or RuntimeError.

    Parameters among `tensors` are taken as they are: they belong to a program already.
    """
    state, made = nn.Module(), dict[str, Tensor]()
    for entry, held in zip(entries, held_names(entries), strict=True):
        name, tied_to = str(entry["name"]), entry.get("tied_to")
        value = tensors[held] if tied_to is None else made[tied_to]
        if "trainable" in entry and not isinstance(value, nn.Parameter):
            value = nn.Parameter(value, requires_grad=entry["trainable"] is True)
        made[name] = value
        put_state(state, name, value, persistent=entry["saved"] is True)
    return state
