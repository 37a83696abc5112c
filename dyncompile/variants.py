"""A network at several sizes of an input: which state the sizes share, and how passes are applied to all.

`at(program, column)` is an ordinary program: graphs and signature of one size, and a state tree under the
source's names. The trees share their modules with the program's own tree, except where a size has state of
its own:

    norms       statistics and affine of every batch norm, shortcuts included: activations at other sizes have
                other distributions (resolution-aware BN of DRNet, NeurIPS 2021)
    constants   what a capture bakes in: masks of attention windows, grids

That lies under ``dyn.sizes.<size>.<name>``. Everything else is one: weights, decision nets, what passes add.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from dyncompile.analysis.dims.call import bind
from dyncompile.errors import DyncompileError, NoSiteError
from dyncompile.program import Choice, Mode, Program, Variant, Variants, copy_graph, size_label
from dyncompile.runtime import ops
from dyncompile.state import (
    CONSTANTS,
    GATES,
    STATE_PREFIX,
    put_state,
    share_state,
    state_tensors,
)
from dyncompile.torchlib import own_buffers, own_modules, own_parameters

SIZES = f"{STATE_PREFIX}.sizes"
"""Where state lives that belongs to one size of an input."""

_BATCH_NORM = torch.ops.aten.batch_norm.default
_LEAVES = ("_parameters", "_buffers", "_non_persistent_buffers_set")


@dataclass(frozen=True)
class Offer:
    """Sizes of an input to choose from, before they are put together.

    Attributes:
        choice: one-hot, a column per size; the full column is the native size.
        image: position of the input among the flat inputs.
        sizes: (height, width) per column.
        net: reads the input and gives logits [B, columns]; None leaves the choice to policies.
        programs: the network at every other size, by column, with the same passes applied.
        refused: sizes that were asked for and are not offered, and why.
    """

    choice: Choice
    image: int
    sizes: tuple[tuple[int, int], ...]
    net: nn.Module | None = field(compare=False)
    programs: Mapping[int, Program] = field(compare=False)
    refused: Mapping[tuple[int, int], str] = field(default_factory=dict[tuple[int, int], str])


def at(program: Program, column: int) -> Program:
    """The ordinary program of one size: its graphs, its signature, its view of the state."""
    variants = program.variants
    assert variants is not None
    choices = {name: choice for name, choice in program.choices.items() if name != variants.choice}
    plain = replace(program, choices=choices, variants=None, source=None)
    hidden = (SIZES, f"{GATES}.{variants.choice}")
    if column == variants.native:
        return replace(plain, state=_view(program.state, None, hidden))
    one = variants.others[column]
    own = _found(program.state, _home(variants.sizes[column]))
    state = _view(program.state, own, (*hidden, CONSTANTS))
    return replace(plain, graphs=one.graphs, signature=one.signature, state=state, origin=one.origin)


def columns_of(program: Program) -> range:
    """The columns of the choice of sizes; none where there is no such choice."""
    return range(0 if program.variants is None else len(program.variants.sizes))


def offered(program: Program, offer: Offer, heads: Mapping[Mode, fx.Graph]) -> Program:
    """`program`, which is the network at its native size, with the other sizes beside it."""
    variants = Variants(offer.choice.name, offer.image, offer.sizes, heads, {}, offer.refused)
    return _joined(program, variants, offer.programs)


def copy_program(program: Program, memo: dict[int, Any]) -> Program:
    """An independent program: its own tensors and graphs."""
    variants = program.variants and replace(
        program.variants,
        heads=_copies(program.variants.heads),
        others={
            column: replace(one, graphs=_copies(one.graphs))
            for column, one in program.variants.others.items()
        },
    )
    state = copy.deepcopy(program.state, memo)
    return replace(program, graphs=_copies(program.graphs), state=state, variants=variants)


def _copies(graphs: Mapping[Mode, fx.Graph]) -> dict[Mode, fx.Graph]:
    return {mode: copy_graph(graph) for mode, graph in graphs.items()}


def inputs_alone(graph: fx.Graph) -> fx.Graph:
    """A graph with the same inputs and nothing else."""
    new = fx.Graph()
    for node in graph.nodes:
        if node.op == "placeholder":
            new.node_copy(node).meta = dict(node.meta)
    return new


def edited(program: Program, edit: Callable[[Program], Program]) -> Program:
    """A program of several sizes after the same edit at each of them.

    What the edit adds at the native size serves the others.

    Raises:
        NoSiteError: the edit is refused at a size, or decides other things there.
    """
    variants = program.variants
    assert variants is not None
    native = edit(at(program, variants.native))
    others: dict[int, Program] = {}
    for column in variants.others:
        try:
            others[column] = edit(at(program, column))
        except DyncompileError as error:
            label = size_label(variants.sizes[column])
            raise NoSiteError(
                f"at size {label}: {error.problem}", where=error.where, fix=error.fix
            ) from error
    for name, value in state_tensors(program.state).items():
        if name.startswith(f"{GATES}.{variants.choice}."):
            put_state(native.state, name, value)
    native = replace(native, choices={**program.choices, **native.choices}, source=program.source)
    return _joined(native, variants, others)


def _joined(native: Program, variants: Variants, others: Mapping[int, Program]) -> Program:
    """Put sizes together over one state."""
    state = share_state(native.state)
    shared = state_tensors(native.state)
    for column, other in others.items():
        size = variants.sizes[column]
        _check(native, other, variants, size_label(size))
        for name, (value, persistent) in _own_state(other, shared).items():
            put_state(state, f"{_home(size)}.{name}", value, persistent=persistent)
    found = {column: Variant(other.graphs, other.signature, other.origin) for column, other in others.items()}
    return replace(native, state=state, variants=replace(variants, others=found))


def _home(size: tuple[int, int]) -> str:
    return f"{SIZES}.{size_label(size)}"


def _check(native: Program, other: Program, variants: Variants, label: str) -> None:
    """Both sizes are decided alike, and add the same state. Raises NoSiteError."""
    decided = {name: choice for name, choice in native.choices.items() if name != variants.choice}
    pairs = {
        "choices": (decided, other.choices),
        "sized dims": (native.sized, other.sized),
        "picked dims": (native.picked, other.picked),
    }
    for what, (here, there) in pairs.items():
        if here != there:
            apart = sorted({n for n in (*here, *there) if here.get(n) != there.get(n)})
            raise NoSiteError(
                f"the {what} at size {label} are not those of the native size: {', '.join(apart[:5])}",
                fix="leave this size out, or exclude what exists at one size only",
            )


# -- state of its own ---------------------------------------------------------------------------------


def _own_state(other: Program, shared: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, bool]]:
    """State that a size has for itself: name -> (tensor, whether it is saved).

    A module is taken as a whole: where it also holds shared tensors they are registered once more.

    Raises:
        NoSiteError: something was added that has another shape at the native size.
    """
    tensors, saved = state_tensors(other.state), set(other.state.state_dict())
    norms = {name for graph in other.graphs.values() for name in norm_state(graph)}
    norms |= {name for module in _modules_of(norms) for name in _buffers_of(other.state, module)}
    own = {n for n in tensors if n in norms or n.startswith(f"{CONSTANTS}.")}
    for name, value in tensors.items():
        if name in own or value is shared.get(name):
            continue
        if not name.startswith(f"{STATE_PREFIX}."):
            own.add(name)
        elif name not in shared or shared[name].shape != value.shape:
            raise NoSiteError(f"{name} of shape {list(value.shape)} does not fit all sizes")
    homes = _modules_of(own)
    found: dict[str, tuple[Tensor, bool]] = {}
    for name, value in tensors.items():
        if name.rpartition(".")[0] in homes:
            other_value = shared.get(name, value)
            mine = _copied(value) if value is other_value else value
            found[name] = (mine if name in own else other_value), name in saved
    return found


def norm_state(graph: fx.Graph) -> set[str]:
    """Names of the affine parameters and running statistics that batch norms of a graph read."""
    todo: list[fx.Node] = []
    for node in graph.nodes:
        if node.target is _BATCH_NORM:
            given = bind(node)
            operands = (given[name] for name in ("weight", "bias", "running_mean", "running_var"))
            todo += [operand for operand in operands if isinstance(operand, fx.Node)]
    found: set[str] = set()
    while todo:
        node = todo.pop()
        if node.op == "get_attr":
            found.add(str(node.target))
        elif node.target not in ops.DECISIONS:
            todo += node.all_input_nodes
    return found


def _modules_of(names: set[str]) -> set[str]:
    return {name.rpartition(".")[0] for name in names}


def _buffers_of(state: nn.Module, module: str) -> list[str]:
    return [f"{module}.{leaf}" if module else leaf for leaf in own_buffers(state.get_submodule(module))]


def _copied(value: Tensor) -> Tensor:
    own = value.detach().clone()
    return nn.Parameter(own, value.requires_grad) if isinstance(value, nn.Parameter) else own


def _found(tree: nn.Module, path: str) -> nn.Module | None:
    """The module at a dotted path; None where a size has nothing of its own (no batch norm)."""
    found: nn.Module | None = tree
    for part in path.split("."):
        found = own_modules(found).get(part) if found is not None else None
    return found


# -- views of the state -------------------------------------------------------------------------------


def _view(base: nn.Module, over: nn.Module | None, hidden: tuple[str, ...], path: str = "") -> nn.Module:
    """The tree `base` without what is `hidden`, with the modules of `over` in place of its own.

    Modules are shared, not copied: what `.to()` or a load replaces in one tree is replaced in the others.
    """
    if over is None and not any(name.startswith(f"{path}.") or not path for name in hidden):
        return base
    new = nn.Module()
    holder = base if over is None or not _has_leaves(over) else over
    for attribute in _LEAVES:
        object.__setattr__(new, attribute, getattr(holder, attribute))
    below, above = own_modules(base), own_modules(over) if over is not None else {}
    for name in dict.fromkeys((*below, *above)):
        here = f"{path}.{name}" if path else name
        lower, upper = None if here in hidden else below.get(name), above.get(name)
        if lower is not None:
            own_modules(new)[name] = _view(lower, upper, hidden, here)
        elif upper is not None:
            own_modules(new)[name] = upper
    return new


def _has_leaves(module: nn.Module) -> bool:
    return bool(own_parameters(module) or own_buffers(module))


def names_in_whole(program: Program, column: int) -> dict[str, str]:
    """State names of one size -> the names of the same tensors in the whole program."""
    by_tensor = {id(value): name for name, value in reversed(state_tensors(program.state).items())}
    return {name: by_tensor[id(value)] for name, value in state_tensors(at(program, column).state).items()}
