"""What torch keeps private or untyped and this package needs, behind typed names, in this one place."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard, TypeVar, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher

Operator = torch._ops.OpOverload  # pyright: ignore[reportPrivateUsage]

enter_autocast: Callable[..., Any] = torch.amp.autocast_mode._enter_autocast  # pyright: ignore
exit_autocast: Callable[..., Any] = torch.amp.autocast_mode._exit_autocast  # pyright: ignore


def is_operator(target: Any) -> TypeGuard[Any]:
    """Whether a node's target is an operator overload, not a plain Python function."""
    return isinstance(target, Operator)


def schema_of(target: Any) -> Any:
    """The schema of an operator (arguments with names, types and defaults), None for plain functions."""
    return getattr(target, "_schema", None)


def draws_random_numbers(target: Any) -> bool:
    """Whether an operator advances a random generator."""
    return is_operator(target) and torch.Tag.nondeterministic_seeded in target.tags


def has_kernel(target: Any) -> bool:
    """Whether an operator is one of the dispatcher's: TorchScript has more by the same names."""
    known = torch._C._dispatch_has_kernel  # pyright: ignore
    return bool(known(target.name()))


def is_composite(target: Any) -> bool:
    """Whether an operator is defined by other operators (CompositeImplicitAutograd)."""
    dispatched = torch._C._dispatch_has_kernel_for_dispatch_key  # pyright: ignore
    return is_operator(target) and dispatched(target.name(), "CompositeImplicitAutograd")


def map_nodes(value: Any, function: Callable[[fx.Node], Any]) -> Any:
    """`value` with every node in it (in lists, tuples, dicts, slices) replaced by `function` of it."""
    return cast(Any, fx).node.map_arg(value, function)


def by_name(graph: fx.Graph) -> dict[str, fx.Node]:
    """The nodes of a graph by name, as they are now."""
    return {node.name: node for node in graph.nodes}


def nodes_in(value: Any) -> list[fx.Node]:
    """Every node in a value (in lists, tuples, dicts, slices), with repetition."""
    found: list[fx.Node] = []
    map_nodes(value, lambda node: found.append(node) or node)
    return found


def fake_copy(
    target: Any, args: tuple[Any, ...], like: Tensor, kwargs: Mapping[str, Any] | None = None
) -> Any:
    """What `target` gives for node arguments, computed on abstract values only; `like` is one of these."""
    mode = cast(Any, like).fake_mode

    def abstract(node: fx.Node) -> Any:
        value = node.meta["val"]
        return (
            mode.from_tensor(value, static_shapes=True)
            if type(value) in (Tensor, torch.nn.Parameter)
            else value
        )

    with mode, torch.no_grad(), enable_python_dispatcher():  # kernels in C++ would fix the batch size
        return target(*map_nodes(args, abstract), **map_nodes(dict(kwargs or {}), abstract))


def items(value: Any) -> list[Any]:
    """The entries of a list or tuple; a single value as one entry."""
    return list(cast("list[Any]", value)) if isinstance(value, list | tuple) else [value]


def is_several(value: Any) -> bool:
    """Whether a node's value is a list or tuple."""
    return isinstance(value, list | tuple)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors among the entries of a node's value."""
    return [entry for entry in items(value) if isinstance(entry, Tensor)]


def is_symbolic(size: Any) -> bool:
    """Whether a size is unknown until the graph runs."""
    return isinstance(size, torch.SymInt)


def symbolic_int(value: torch.SymInt) -> Any:
    """The sympy expression of a symbolic size."""
    return cast(Any, value).node.expr


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """The parameters registered on one module itself; the dictionary is live."""
    return module._parameters  # pyright: ignore


def own_buffers(module: nn.Module) -> dict[str, Tensor | None]:
    """The buffers registered on one module itself; the dictionary is live."""
    return module._buffers  # pyright: ignore


def own_modules(module: nn.Module) -> dict[str, nn.Module | None]:
    """The children registered on one module itself; the dictionary is live."""
    return module._modules  # pyright: ignore


def transient_buffers(module: nn.Module) -> set[str]:
    """Names of a module's own buffers that its state dict leaves out; the set is live."""
    return module._non_persistent_buffers_set  # pyright: ignore


def python_calling(names: list[str], structure: Any, out_structure: Any) -> Any:
    """Code generation for a graph that takes `names` (a pytree of them) and returns a pytree."""
    graph_module = cast(Any, fx).graph
    return graph_module._PyTreeCodeGen(graph_module._PyTreeInfo(names, structure, out_structure))


def named_modules(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module with its dotted name; one that is registered twice is listed twice."""
    return list(cast(Any, module).named_modules(remove_duplicate=False))


def observe_calls(module: nn.Module, enter: Callable[..., None], leave: Callable[..., None]) -> None:
    """Call ``enter(module, args)`` before every forward and ``leave(module, args, output)`` after it."""
    untyped = cast(Any, module)
    untyped.register_forward_pre_hook(enter)
    untyped.register_forward_hook(leave)


@contextmanager
def seeded(seed: int) -> Generator[None]:
    """The CPU's generator starts at `seed` inside; afterwards it goes on as if nothing had been."""
    with cast(Any, torch.random).fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def encode_tensors(tensors: dict[str, Tensor]) -> bytes:
    """Tensors in the safetensors format."""
    return cast(Any, safetensors.torch).save(tensors)


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Tensors to a safetensors file, without a copy of all of them in memory."""
    path.touch()  # or nobody else may read what safetensors creates
    cast(Any, safetensors.torch).save_file(tensors, path)


def open_tensors(path: Path) -> Any:
    """A safetensors file, opened lazily: ``keys``, ``get_slice``, ``get_tensor``; see `read_tensor`."""
    return cast(Any, safetensors).safe_open(path, framework="pt")


_ALIGNMENT = 64
"""Bytes at whose multiples torch puts what it allocates on a CPU."""


def read_tensor(file: Any, name: str) -> Tensor:
    """One tensor of an open file, where torch would have put it.

    In the file it begins anywhere, and kernels take another way there: the last bits of sums would not be
    those of the model that was saved.
    """
    found: Tensor = file.get_tensor(name)
    return found.clone() if found.data_ptr() % _ALIGNMENT else found


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` by torch.compile, in one graph. Sizes are fixed but for those of `mark_batch`."""
    return cast(Any, torch).compile(function, fullgraph=True)


_Function = TypeVar("_Function", bound=Callable[..., Any])


def untraced(function: _Function) -> _Function:
    """`function`, which torch.compile runs and does not follow."""
    return cast(Any, torch.compiler).disable(function)


def mark_batch(x: Tensor, axes: Sequence[int]) -> Tensor:
    """An alias of `x` whose given axes torch.compile takes as symbolic, with sizes from 2 on."""
    alias = x.detach()
    for axis in axes:
        cast(Any, torch)._dynamo.mark_dynamic(alias, axis)
    return alias


_AUTOCASTING = ("cpu", "cuda")


@contextmanager
def autocast_kept() -> Generator[None]:
    """An error inside leaves no mode of autocast behind that was entered there."""
    torch_: Any = torch
    modes = [(d, torch_.is_autocast_enabled(d), torch_.get_autocast_dtype(d)) for d in _AUTOCASTING]
    depth = _autocast_depth()
    try:
        yield
    except BaseException:
        for device, enabled, dtype in modes:
            torch_.set_autocast_enabled(device, enabled)
            torch_.set_autocast_dtype(device, dtype)
        for _ in range(_autocast_depth() - depth):
            torch_.autocast_decrement_nesting()
        torch_.clear_autocast_cache()
        raise


def _autocast_depth() -> int:
    """How many modes are entered: torch tells when it counts."""
    torch_: Any = torch
    torch_.autocast_increment_nesting()
    return int(torch_.autocast_decrement_nesting())
