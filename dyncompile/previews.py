"""A network that looks first: a narrow copy of the source on a smaller image, or one that the user registers.

The copy is made by the dimension types: every elastic dim keeps its leading share, at full capacity of all
choices that there are. It has weights of its own, which start as slices of the source's. Whether its graph
can run at another resolution is tried; one that holds literal sizes (position embeddings) runs at the
source's. Images shrink by the mean over areas, which lets no frequency alias.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from dyncompile.analysis.dims.call import bind
from dyncompile.analysis.dims.facts import DimFacts, dim_facts
from dyncompile.analysis.flow import CONTRACTIONS, carries_tensor, op_name
from dyncompile.deploy.fold import fold
from dyncompile.errors import SpecError
from dyncompile.exits import prediction
from dyncompile.gate import without_gates
from dyncompile.policies import Full
from dyncompile.program import MODES, Mode, Program, copy_graph
from dyncompile.resize import Resizer
from dyncompile.runtime.steering import Group, decision_of
from dyncompile.state import STATE_PREFIX, put_state, state_tensors
from dyncompile.torchlib import items

Factory = Callable[[tuple[int, ...], int], nn.Module]
"""``factory(shape per sample, classes)`` -> a module: ``x -> logits`` or ``(logits, features [B, F])``."""

_REGISTERED: dict[str, Factory] = {}


def register_preview(name: str, factory: Factory) -> None:
    """Let specs name a preview network: ``basisnet(preview='tiny')``.

    A checkpoint holds the name alone: register the same factory before loading it. It must be deterministic
    in its parameters' names and shapes. The module must take any batch size.

    Raises:
        SpecError: the name is taken, or means something else.
    """
    if name in ("auto", "source", "stage") or name in _REGISTERED:
        raise SpecError(f"a preview named {name!r} exists already", fix="give it another name")
    _REGISTERED[name] = factory


def registered_preview(name: str) -> Factory | None:
    """The factory of a name; None without one."""
    return _REGISTERED.get(name)


def registered_names() -> list[str]:
    """Names of all registered previews."""
    return sorted(_REGISTERED)


class Preview(nn.Module):
    """A registered network as a preview: ``x -> (logits [B, K], features [B, F])``."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits serve as features where the network gives no others."""
        found = items(self.net(x))
        return found[0], found[-1]


class Mirror(nn.Module):
    """A narrow copy of a program, ``(*inputs) -> (logits [B, K], features [B, F])``.

    `side` is the height and width that images are reduced to; None takes them as they are.
    """

    def __init__(
        self, graphs: Mapping[Mode, fx.Graph], state: Mapping[str, Tensor], side: tuple[int, int] | None
    ) -> None:
        super().__init__()
        self._graphs, self.side = dict(graphs), side
        for name, value in state.items():
            own = value.detach().clone(memory_format=torch.contiguous_format)
            put_state(self, name, nn.Parameter(own) if isinstance(value, nn.Parameter) else own)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The graph of the present mode."""
        if self.side is not None:
            inputs = (F.adaptive_avg_pool2d(inputs[0], self.side), *inputs[1:])
        graph = self._graphs["train" if self.training else "eval"]
        logits, features = fx.Interpreter(self, graph=graph).run(*inputs)  # pyright: ignore
        return logits, features


def mirror(program: Program, *, width: float, resolution: float, divisor: int = 8) -> Mirror:
    """A copy at a share of the widths, for images at a share of the resolution where its graph allows."""
    static = _static(program)
    dims = dim_facts(static)
    widths = narrow_widths(dims, width, divisor)
    graphs: dict[Mode, fx.Graph] = {}
    state: dict[str, Tensor] = {}
    for mode in MODES:
        graph = copy_graph(static.graphs[mode])
        resizer = Resizer(graph, dims.graphs[mode], dims.state, widths)
        resizer.run(dims.statistics, lambda node: None)
        graphs[mode], found = fold(graph, None, state_tensors(static.state), static.captured)
        state.update(_owned(graphs[mode], found, static))
        _with_features(graphs[mode])
    side = image_side(program, resolution)
    small = Mirror(graphs, state, side).eval()
    return small if side is None or _runs(small, program) else Mirror(graphs, state, None).eval()


def is_image(program: Program) -> bool:
    """Whether the network has one input, and that is a map [B, C, H, W]."""
    leaves = [leaf for leaf in program.signature.leaves if leaf.shape is not None]
    return len(leaves) == 1 and len(leaves[0].shape or ()) == 4 and bool(_floating(leaves[0].dtype))


def _floating(dtype: torch.dtype | None) -> bool:
    return dtype is not None and dtype.is_floating_point


def image_side(program: Program, resolution: float) -> tuple[int, int] | None:
    """Height and width at a share of the source's; None where that is the same, or nothing is an image."""
    if resolution == 1 or not is_image(program):
        return None
    shape = next(leaf.shape for leaf in program.signature.leaves if leaf.shape is not None)
    height, width = (max(1, round(resolution * int(n or 1))) for n in shape[2:])
    return height, width


def narrow_widths(dims: DimFacts, share: float, divisor: int) -> dict[str, int]:
    """Sizes of all elastic dims that can shrink together: outermost factors first."""
    order = sorted(dims.elastic.values(), key=lambda one: (not one.outermost, -one.dim.size))
    widths: dict[str, int] = {}
    for one in order:
        if any(partner in widths for partner in one.partners):
            continue
        step = divisor if one.dim.size >= 2 * divisor else 1
        widths[one.dim.name] = min(one.dim.size, max(step, round(one.dim.size * share / step) * step))
    return widths


def _static(program: Program) -> Program:
    """The program with every choice at full capacity and none left in it."""
    if not program.choices:
        return program
    rows = {name: decision_of(Full().decide(one, 1, None)) for name, one in program.choices.items()}
    group, tensors = Group(torch.arange(1), rows), state_tensors(program.state)
    graphs: dict[Mode, fx.Graph] = {}
    state = nn.Module()
    for mode in MODES:
        graphs[mode], found = fold(without_gates(program.graphs[mode]), group, tensors, program.captured)
        for name, value in found.items():
            put_state(state, name, value)
    return replace(program, graphs=graphs, state=state, choices={}, sized={}, picked={})


def _owned(graph: fx.Graph, found: Mapping[str, Tensor], static: Program) -> dict[str, Tensor]:
    """State under names that lie outside of ``dyn.``, parameters as such; `graph` reads it by these."""
    sources = state_tensors(static.state)
    out: dict[str, Tensor] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            name = str(node.target)
            outside = f"own_{name.replace('.', '_')}" if name.startswith(f"{STATE_PREFIX}.") else name
            node.target = outside
            learns = isinstance(sources.get(name), nn.Parameter)
            out[node.target] = nn.Parameter(found[name]) if learns else found[name]
    return out


def _with_features(graph: fx.Graph) -> None:
    """Let a graph give its prediction, and what its last contraction reads, pooled to one row per sample."""
    logits = prediction(graph)
    values = graph.output_node().all_input_nodes
    first = logits if isinstance(logits, fx.Node) else values[0]
    features = _pooled(graph, _classifier_input(first))
    graph.output_node().args = ((first, features),)
    graph.eliminate_dead_code()
    graph.lint()


def _classifier_input(logits: fx.Node) -> fx.Node:
    node = logits
    while op_name(node) not in CONTRACTIONS:
        data = [n for n in node.all_input_nodes if carries_tensor(n) and n.op != "get_attr"]
        if not data or data[0].op == "placeholder":
            return logits
        node = data[0]
    return next(iter(value for value in bind(node).values() if isinstance(value, fx.Node)))


def _pooled(graph: fx.Graph, features: fx.Node) -> fx.Node:
    """``[B, C, H, W]`` and ``[B, N, C]`` by their mean over positions."""
    rank = features.meta["val"].dim()
    if rank == 2:
        return features
    with graph.inserting_after(features):
        return graph.call_function(
            torch.ops.aten.mean.dim, (features, [1] if rank == 3 else list(range(2, rank)))
        )


def _runs(small: Mirror, program: Program) -> bool:
    """Whether a copy gives a prediction of the source's form at its size."""
    (leaf,) = (leaf for leaf in program.signature.leaves if leaf.shape is not None)
    like = next(iter(small.parameters()))
    x = torch.zeros(2, *(int(n or 1) for n in (leaf.shape or ())[1:]), dtype=like.dtype, device=like.device)
    expected = program.graphs["eval"].output_node().all_input_nodes[0].meta["val"]
    try:
        with torch.no_grad():
            logits, _ = small(x)
    except (RuntimeError, ValueError, IndexError):  # literal sizes of the other resolution
        return False
    return tuple(logits.shape[1:]) == tuple(expected.shape[1:]) and len(logits) == 2
