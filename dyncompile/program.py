"""The nouns: a captured program, the choices inserted into it, routes through it, and who decides them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, fx, nn

from dyncompile.errors import RouteError, SpecError
from dyncompile.signature import Signature
from dyncompile.state import Dtypes, dtypes_of
from dyncompile.torchlib import by_name, is_operator, is_several, items

if TYPE_CHECKING:
    from dyncompile.plan import Plan

Mode = Literal["train", "eval"]
MODES: tuple[Mode, ...] = ("train", "eval")

POLICY = "policy"
"""Name of the graph input through which decisions are asked for."""


class Domain(Enum):
    """The set that one row of a decision is drawn from."""

    ONE_HOT = "one-hot"
    BITS = "bits"
    GAINS = "gains"
    SIMPLEX = "simplex"
    MIXTURE = "mixture"
    EXIT = "exit"


SIMPLEX_TOLERANCE = 1e-4
"""How far the weights of a row of `Domain.SIMPLEX` may be from summing to 1."""

WEIGHTS = (Domain.GAINS, Domain.SIMPLEX)
"""Domains whose numbers multiply what they stand for; at exactly 0 it need not run."""

SWITCHES = (Domain.GAINS, Domain.BITS)
"""Domains whose columns are switched on and off independently."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which alternatives a decision net keeps, given their probabilities; the rest get weight 0.

    Attributes:
        threshold: least probability, in [0, 1]; the best one stays in any case.
        top: keep so many at most; 0 has no limit. One alone has weight 1.
    """

    threshold: float = 0.25
    top: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1 or self.top < 0:
            raise SpecError(f"a selection has a threshold in [0, 1] and top >= 0, got {self}")

    def kept(self, probabilities: Tensor) -> Tensor:
        """Weights [B, width] of probabilities [B, width]: 0 where nothing is kept, renormalized elsewhere."""
        ranks = _ranks(probabilities)
        stays = (probabilities >= self.threshold) | (ranks == 0)
        if self.top:
            stays = stays & (ranks < self.top)
        left = probabilities * stays
        return left / left.sum(1, keepdim=True)


def _ranks(values: Tensor) -> Tensor:
    """How many columns of its row each of `values` [B, width] comes after, the first of equals first.

    Comparisons only: exported programs have no stable sort.
    """
    at = torch.arange(values.shape[1], device=values.device)
    one, other = values[:, :, None], values[:, None, :]
    return ((other > one) | ((other == one) & (at < at[:, None]))).sum(2)


@dataclass(frozen=True, slots=True)
class Choice:
    """One decision point: rows of `width` numbers from `domain`, one row per sample.

    `full` is the row that reproduces the source, `smallest` the cheapest one; `labels` name the columns.
    `selection` is how a learned row of the simplex becomes sparse; None keeps the best column alone.
    Columns of a mixture that are mixed with one another come in runs of `block`.
    """

    name: str
    domain: Domain
    full: tuple[float, ...]
    smallest: tuple[float, ...]
    labels: tuple[str, ...] = ()
    selection: Selection | None = None
    block: int = 0

    @property
    def width(self) -> int:
        """Numbers per row."""
        return len(self.full)

    def row(self, index: int) -> tuple[float, ...]:
        """The one-hot row of column `index`."""
        return tuple(float(i == index) for i in range(self.width))

    def check(self, rows: Tensor) -> Tensor:
        """`rows` [B, width] as floating-point numbers if every row lies in the domain; raises RouteError."""
        if rows.dim() != 2 or rows.shape[1] != self.width:
            raise RouteError(
                f"choice {self.name!r} takes rows [B, {self.width}], got shape {list(rows.shape)}",
                fix="give one row per sample; `dyn.choices` lists the widths",
            )
        if not bool(_in_domain(self.domain, rows).all()):
            raise RouteError(f"a row of choice {self.name!r} is outside its domain ({self.domain.value})")
        return rows if rows.is_floating_point() else rows.float()


def _in_domain(domain: Domain, rows: Tensor) -> Tensor:
    """Which rows lie in a domain: bool [B]."""
    if domain is Domain.GAINS:
        return (rows >= 0).all(1)
    if domain is Domain.SIMPLEX:
        return (rows >= 0).all(1) & ((rows.sum(1) - 1).abs() <= SIMPLEX_TOLERANCE)
    if domain is Domain.MIXTURE:
        return rows.isfinite().all(1)
    binary = ((rows == 0) | (rows == 1)).all(1)
    return binary & (rows.sum(1) == 1) if domain is Domain.ONE_HOT else binary


def activity(choice: Choice, rows: Tensor) -> Tensor:
    """Which columns `rows` [B, width] switch on, in their dtype: gains and weights by being above 0.

    The gradient of their activity is that of the numbers themselves (straight-through). Other rows are their
    own activity.
    """
    if choice.domain not in WEIGHTS:
        return rows
    hard = (rows > 0).to(rows.dtype)
    return hard + (rows - rows.detach()) if rows.requires_grad else hard


Route = Mapping[str, Tensor]
"""Choice name -> decisions, float [B, width]."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a graph sees of one choice: `rows` [B, width].

    `index` is the column that all rows of the run share.
    """

    rows: Tensor
    index: int


@dataclass(frozen=True, slots=True)
class Sized:
    """An elastic dim whose size a choice decides: `sizes[i]` positions at column i."""

    choice: str
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Picked:
    """An elastic dim whose positions a choice keeps one by one: column j stands for `block` of them."""

    choice: str
    block: int = 1


@dataclass(frozen=True)
class Variant:
    """The network captured at another size of an input: its own graphs, in the source's names of state.

    `origin` are these graphs as they were captured, before any pass.
    """

    graphs: Mapping[Mode, fx.Graph]
    signature: Signature
    origin: Mapping[Mode, fx.Graph]


@dataclass(frozen=True)
class Variants:
    """A network at several sizes of one input, of which a choice picks one per sample.

    Attributes:
        choice: who decides; a column per size.
        image: position of the input among the flat inputs, a map [B, C, H, W].
        sizes: (height, width) that each column resizes it to.
        heads: graphs of the same inputs that only take the decision.
        others: the network at every size but the native one, by column.
        refused: sizes that were asked for and are not offered, and why.

    Norms have state of their own at every size, which `dyncompile.variants` finds; all else is shared.
    """

    choice: str
    image: int
    sizes: tuple[tuple[int, int], ...]
    heads: Mapping[Mode, fx.Graph]
    others: Mapping[int, Variant]
    refused: Mapping[tuple[int, int], str] = field(default_factory=dict[tuple[int, int], str])

    @property
    def native(self) -> int:
        """The column of the size that the program itself was captured at."""
        return next(column for column in range(len(self.sizes)) if column not in self.others)


class Source(Protocol):
    """Where a program comes from: it has the same network at other sizes of an input."""

    def sized(self, program: Program, image: int, size: tuple[int, int]) -> Program:
        """The network before any pass, with the flat input `image` [B, C, H, W] at `size` (height, width).

        What it shares with the native size are the tensors of `program`. Raises CaptureError where it does
        not exist.
        """
        ...


@dataclass(frozen=True)
class Program:
    """A network as data: two graphs over one state, and the decisions inserted so far.

    Attributes:
        graphs: the training-mode and the evaluation-mode graph (ATen training IR).
        state: module tree that holds parameters and buffers under the source's names.
        captured: the types of floating-point state before any cast of it, by name.
        signature: how user arguments map to graph inputs and outputs to the user's structure.
        choices: decision points by name.
        sized: elastic dims of which a choice keeps a leading share.
        picked: elastic dims of which a choice keeps any positions.
        history: specifications of the passes applied, in order.
        plans: what each of them decided: sites, rejections with reasons.
        notes: remarks of capture and passes for `explain`.
        source: gives the network at other sizes of an input; None where this is one of several sizes already.
        variants: the same network at other sizes of an input.
        origin: the graphs as they were captured, before any pass; empty before the first one.
    """

    graphs: Mapping[Mode, fx.Graph]
    state: nn.Module
    signature: Signature
    choices: Mapping[str, Choice] = field(default_factory=dict[str, Choice])
    sized: Mapping[str, Sized] = field(default_factory=dict[str, Sized])
    picked: Mapping[str, Picked] = field(default_factory=dict[str, Picked])
    history: tuple[str, ...] = ()
    plans: tuple[Plan, ...] = ()
    notes: tuple[str, ...] = ()
    source: Source | None = None
    variants: Variants | None = None
    origin: Mapping[Mode, fx.Graph] = field(default_factory=dict[Mode, fx.Graph])
    captured: Dtypes = field(default_factory=dict[str, torch.dtype])

    def __post_init__(self) -> None:
        # What `replace` adds to the state joins with the type that it has then.
        object.__setattr__(self, "captured", {**dtypes_of(self.state), **self.captured})

    @cached_property
    def nodes(self) -> Mapping[Mode, Mapping[str, fx.Node]]:
        """The nodes of each graph by name, as they are when this is first asked for."""
        return {mode: by_name(graph) for mode, graph in self.graphs.items()}

    def listing(self, mode: Mode = "eval") -> str:
        """The graphs of one mode as text, one node per line, independent of object identities."""
        text = _listed(self.graphs[mode])
        if self.variants is None:
            return text
        parts = [f"# {self.variants.choice} is decided by", _listed(self.variants.heads[mode])]
        for column, variant in self.variants.others.items():
            parts += [f"# at {size_label(self.variants.sizes[column])}", _listed(variant.graphs[mode])]
        return "\n".join((text, *parts))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over both listings, the inputs, the choices and the state's names, shapes and types."""
        return self._fingerprint({})

    @property
    def captured_fingerprint(self) -> str:
        """The fingerprint before any cast of the state."""
        return self._fingerprint(self.captured)

    def _fingerprint(self, dtypes: Dtypes) -> str:
        """The fingerprint with state by name in other types than it has."""
        digest = hashlib.sha256()
        for leaf in self.signature.leaves:
            digest.update(repr(leaf).encode())
        for mode in MODES:
            digest.update(self.listing(mode).encode())
        for choice in self.choices.values():
            digest.update(repr(choice).encode())
        for name, tensor in self.state.state_dict().items():
            dtype = dtypes.get(name, tensor.dtype)
            digest.update(f"{name}{list(tensor.shape)}{dtype}".encode())
        return digest.hexdigest()


def flat_inputs(graph: fx.Graph) -> list[fx.Node]:
    """The flat inputs of the source, without the policy."""
    return [node for node in graph.nodes if node.op == "placeholder" and node.target != POLICY]


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """A copy with the same node names and shared metadata values."""
    new = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        env[node] = new.node_copy(node, env.__getitem__)
        env[node].meta = dict(node.meta)
    return new


def size_label(size: tuple[int, int]) -> str:
    """The name of a size: ``112``, or ``112x96`` for heights and widths that differ."""
    height, width = size
    return str(height) if height == width else f"{height}x{width}"


def _listed(graph: fx.Graph) -> str:
    return "\n".join(_line(node) for node in graph.nodes)


def _line(node: fx.Node) -> str:
    if node.op in ("placeholder", "get_attr"):
        return f"%{node.name} = {node.op} {node.target}"
    arguments = [_text(a) for a in node.args] + [f"{k}={_text(v)}" for k, v in node.kwargs.items()]
    if node.op == "output":
        return f"return {', '.join(arguments)}"
    return f"%{node.name} = {_target(node.target)}({', '.join(arguments)})"


def _target(target: Any) -> str:
    return str(target) if is_operator(target) else target.__name__


def _text(value: Any) -> str:
    if isinstance(value, fx.Node):
        return f"%{value.name}"
    if is_several(value):
        return "[" + ", ".join(map(_text, items(value))) + "]"
    return repr(value)


_NOT_THE_USERS = ("/torch/", "/dyncompile/capture/")


def source_line(node: fx.Node) -> str:
    """The user's source line that produced a node: ``file:line: code``; empty if unknown."""
    trace = node.meta.get("stack_trace")
    lines = [text.strip() for text in trace.splitlines()] if isinstance(trace, str) else []
    frames = [i for i, text in enumerate(lines) if text.startswith('File "')]
    own = [i for i in frames if not any(part in lines[i] for part in _NOT_THE_USERS)] or frames
    if not own:
        return ""
    at = own[-1]
    file, number = lines[at].split('"')[1], lines[at].split("line ")[1].split(",")[0]
    code = lines[at + 1] if at + 1 < len(lines) and at + 1 not in frames else ""
    return f"{file}:{number}: {code}"
