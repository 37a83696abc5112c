"""What several processes have in common, without a wrapper around the model.

`DistributedDataParallel` expects one forward and one backward pass per step that use the same parameters
every time. A step here has several passes, each through other parts of the network (a narrow pass leaves wide
layers unused), so its hooks would either wait for gradients that never come or reduce the same ones several
times. Instead the model stays as it is: state is broadcast once at the start, and gradients are averaged once
per optimizer step, after all passes. That sends fewer bytes than reducing after every pass, and `dyn.run`,
policies and names stay those of the plain model. The price is that communication does not overlap with the
backward pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet

import torch
from torch import Tensor, fx, nn

from dyncompile.runtime.model import DynamicModel
from dyncompile.runtime.ops import DECISIONS
from dyncompile.torchlib import schema_of
from dyncompile.train.accelerated import World, floats
from dyncompile.variants import at, columns_of, names_in_whole

_BUCKET = 1 << 25
"""Elements that are sent at once: enough to be fast, few enough not to double the gradients' memory."""


@torch.no_grad()
def broadcast_state(dyn: nn.Module, world: World) -> None:
    """Every process starts from process 0's parameters and buffers."""
    if world.count > 1:
        for tensor in (*dyn.parameters(), *dyn.buffers()):
            world.broadcast(tensor)


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter], weight: float, world: World) -> None:
    """Gradients become their mean over the processes, weighted by `weight` (samples that this one saw).

    A parameter that is unused on this process counts as zero there. One that no process used keeps no
    gradient, so that neither weight decay nor momentum moves it.
    """
    if world.count == 1 or not parameters:
        return
    flags = [float(p.grad is not None) for p in parameters]
    told = floats(world.sum(torch.tensor([*flags, weight], device=world.device)))
    used = [p for p, count in zip(parameters, told, strict=False) if count]
    for p in used:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad.mul_(weight)
    gradients = [p.grad for p in used if p.grad is not None]
    _sum_all(gradients, world)
    for gradient in gradients:
        gradient.div_(told[-1])


@torch.no_grad()
def average_statistics(dyn: DynamicModel, names: AbstractSet[str], world: World) -> None:
    """The named running statistics become their mean over the processes, so that all keep the same model."""
    if world.count == 1:
        return
    tensors = [t for name, t in dyn.named_buffers() if name in names and t.is_floating_point()]
    _sum_all(tensors, world)
    for tensor in tensors:
        tensor.div_(world.count)


def statistics_of(dyn: DynamicModel) -> set[str]:
    """Names of the buffers that norms of the training graph update, private ones of every column included.

    The same on every process, whichever of them a process's own samples touched.
    """
    program = dyn.program
    found = _updated(program.graphs["train"])
    for column in columns_of(program):
        names = names_in_whole(program, column)
        found |= {names[name] for name in _updated(at(program, column).graphs["train"])}
    return found


def _updated(graph: fx.Graph) -> set[str]:
    found: set[str] = set()
    for node in graph.nodes:
        schema = schema_of(node.target)
        names = [] if schema is None else [str(argument.name) for argument in schema.arguments]
        for name, value in zip(names, node.args, strict=False):
            if name in ("running_mean", "running_var") and isinstance(value, fx.Node):
                found |= _state_behind(value)
    return found


def _state_behind(node: fx.Node) -> set[str]:
    """State that a node is made from, not counting what a decision between states looks at."""
    if node.op == "get_attr":
        return {str(node.target)}
    inputs = [] if node.target in DECISIONS else node.all_input_nodes
    return {name for one in inputs for name in _state_behind(one)}


def _sum_all(tensors: Sequence[Tensor], world: World) -> None:
    """Sums over the processes, in place, in flat buckets of one dtype."""
    for bucket in _buckets(tensors):
        flat = world.sum(torch.cat([t.reshape(-1) for t in bucket]))
        start = 0
        for tensor in bucket:
            tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
            start += tensor.numel()


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of one dtype, cut where they grow past the size of a bucket."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for group in by_dtype.values():
        bucket: list[Tensor] = []
        for tensor in group:
            if bucket and sum(t.numel() for t in bucket) + tensor.numel() > _BUCKET:
                yield bucket
                bucket = []
            bucket.append(tensor)
        yield bucket
