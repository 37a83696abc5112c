"""Estimate batch-norm statistics anew, for every column of the choices that have private ones.

Where decision nets skip branches and channels, statistics are shared by all routes, and those of a branch are
estimated from the samples that it runs for.

Statistics gathered in training are averages over weights that have moved on, and narrow networks were seen in
fewer steps. Recalibration (Universally Slimmable Networks, ICCV 2019; DS-Net does it after its first stage)
runs the final weights once more:

    y = (x - mean_batch) / sqrt(var_batch + eps)       norms that are estimated: by the batch that runs
    mean, var  <-  of x over all batches together      pooled, not a moving average; var unbiased

It is the evaluation graph that runs, with those norms on batch statistics: dropout and stochastic depth are
off. Norms that training does not update stay as they are, and so does everything that is no running
statistic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from dyncompile.analysis.dims.call import bind
from dyncompile.errors import InputError, SpecError
from dyncompile.gate import without_gates
from dyncompile.policies import Learned
from dyncompile.processes import total
from dyncompile.program import SWITCHES, WEIGHTS, Decision, copy_graph, flat_inputs
from dyncompile.runtime import ops
from dyncompile.runtime.compiled import compile_graph
from dyncompile.runtime.model import DynamicModel
from dyncompile.runtime.segments import cut
from dyncompile.runtime.sparse import SparseRun
from dyncompile.state import STATE_PREFIX, state_tensors

if TYPE_CHECKING:
    from dyncompile.train.phase import Batch

_ENOUGH = 100
"""Values per channel from which on learned routes give a norm new statistics."""

Columns = Mapping[str, int]
"""Choice name -> column."""


@torch.no_grad()
def recalibrate(dyn: DynamicModel, batches: Iterable[Batch], *, limit: int = 100, full: bool = False) -> None:
    """Reset and estimate the running statistics of every uniform column (all choices at the same one).

    Other choices run at full capacity. The source's own statistics, which are those of the full columns, are
    left alone, so that the model still equals its source there; only where learned gains, bits or weights
    decide what runs, they become those of the learned routes. Where a choice decides the size of an input,
    all of that is done at every size; only at the native one norms are the source's own. On several processes
    each gives its own batches, and all get the statistics of all samples.

    Args:
        dyn: any dynamic model; nothing happens where no norm has private statistics (layer norms).
        batches: training samples on the model's device, the more alike the later use the better. Batches of
            one sample are left out: they have no variance.
        limit: number of batches per column.
        full: estimate the full columns' statistics, too.

    Raises:
        InputError: no batch holds two samples. No statistic has changed then.
        SpecError: `limit` is below 1.
    """
    if limit < 1:
        raise SpecError(f"recalibration needs at least one batch, got limit={limit}")
    again = list(islice(batches, limit)) if iter(batches) is batches else batches
    signature = dyn.program.signature
    if dyn.by_size is None:
        _recalibrate(dyn, _Flat(signature.flatten, again, limit), full)
        return
    for column, model in enumerate(dyn.by_size.models):
        whole = full or model is not dyn.by_size.native  # norms of other sizes are no source's
        _recalibrate(model, _Flat(partial(dyn.by_size.batch, column), again, limit), whole)


@dataclass(frozen=True, slots=True)
class _Flat:
    """The first batches as flat inputs, anew at every round."""

    flatten: Callable[[Sequence[Any], Mapping[str, Any]], list[Any]]
    batches: Iterable[Batch]
    limit: int

    def __iter__(self) -> Iterator[list[Any]]:
        return (self.flatten(batch.args, batch.kwargs) for batch in islice(self.batches, self.limit))


def _recalibrate(dyn: DynamicModel, inputs: Iterable[list[Any]], full: bool) -> None:
    """`recalibrate` for a model of one size of its inputs, which come flat."""
    sites = _sites(dyn)
    tensors = state_tensors(dyn.program.state)
    for columns, wanted in _rounds(dyn, sites, full):
        for name, value in _statistics(dyn, columns, wanted, inputs).items():
            tensors[name].copy_(value)
    if any(dyn.choices[name].domain in {*SWITCHES, *WEIGHTS} for name in dyn.priced.intersection(dyn.gated)):
        shared = [site for site in sites if site.choice is None]
        for name, value in _learned(dyn, shared, inputs).items():
            tensors[name].copy_(value)


@dataclass(frozen=True, slots=True)
class _Site:
    """A norm that training updates: its node, and names of its statistics per column of `choice`, if any."""

    node: str
    choice: str | None
    means: tuple[str, ...]
    variances: tuple[str, ...]

    def at(self, columns: Columns) -> tuple[str, str]:
        """Names of (mean, variance) where the choices are at `columns`."""
        column = 0 if self.choice is None else columns[self.choice]
        return self.means[column], self.variances[column]

    def is_private(self, columns: Columns) -> bool:
        """Whether a choice has it keep statistics there that are not the source's own."""
        return self.choice is not None and self.at(columns)[0].startswith(f"{STATE_PREFIX}.")


def _sites(dyn: DynamicModel) -> list[_Site]:
    graphs = dyn.program.graphs
    learned = {_names(bind(n)["running_mean"])[1] for n in _norms(graphs["train"]) if bind(n)["training"]}
    found: list[_Site] = []
    for node in _norms(graphs["eval"]):
        arguments = bind(node)
        (choice, means), (_, variances) = (_names(arguments[f"running_{what}"]) for what in ("mean", "var"))
        if means in learned:
            found.append(_Site(node.name, choice, means, variances))
    return found


def _norms(graph: fx.Graph) -> Iterator[fx.Node]:
    """Batch norms that keep running statistics."""
    for node in graph.nodes:
        if node.target is torch.ops.aten.batch_norm.default and bind(node)["running_mean"] is not None:
            yield node


def _names(node: fx.Node) -> tuple[str | None, tuple[str, ...]]:
    """(the choice that picks a statistic, state names per column); (None, one name) where it is shared."""
    while node.op != "get_attr" and node.target is not ops.pick:
        node = node.all_input_nodes[0]
    if node.op == "get_attr":
        return None, (str(node.target),)
    decision, options = cast("tuple[fx.Node, Sequence[fx.Node]]", node.args)
    return str(decision.args[1]), tuple(str(option.target) for option in options)


def _rounds(dyn: DynamicModel, sites: Sequence[_Site], full: bool) -> Iterator[tuple[Columns, list[_Site]]]:
    """Every uniform column with the norms whose statistics it gives; the full one first."""
    choices = [dyn.choices[name] for name in dict.fromkeys(site.choice for site in sites if site.choice)]
    whole = {c.name: c.full.index(1.0) for c in choices}
    if full:
        yield whole, [site for site in sites if not site.is_private(whole)]
    for column in range(max((c.width for c in choices), default=0)):
        columns = {c.name: min(column, c.width - 1) for c in choices}
        own = [site for site in sites if site.is_private(columns)]
        if own:
            yield columns, own


class _Probe:
    """The graph's `policy` input: one decision for all rows, and sums [3, C] of what norms see.

    The sums, by the names of the statistics, are those of x, of x^2 and of the number of values, per channel,
    in float64. A norm that the network calls twice sees both.
    """

    def __init__(self, dyn: DynamicModel, columns: Columns, sites: Sequence[_Site]) -> None:
        state = state_tensors(dyn.program.state)
        self.rows = torch.arange(0)
        self._names = {site.node: site.at(columns) for site in sites}
        self.sums = {
            names: torch.zeros(3, len(state[names[0]]), dtype=torch.float64) for names in self._names.values()
        }
        self._decisions = _decisions(dyn, columns)

    def decide(self, name: str, features: Sequence[Tensor]) -> Decision:
        """The decision that this round runs at."""
        return self._decisions[name]

    def note(self, node: str, x: Tensor, channels: Tensor | None) -> None:
        """Add the batch `x` [B, C, ...] that a norm sees; it holds these channels, or the leading ones."""
        axes = [axis for axis in range(x.dim()) if axis != 1]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = (value.double().cpu() for value in torch.var_mean(wide, axes, correction=0))
        seen = torch.stack([mean, variance + mean**2, torch.ones_like(mean)]) * (x.numel() // x.shape[1])
        at = torch.arange(x.shape[1]) if channels is None else channels.cpu()
        self.sums[self._names[node]].index_add_(1, at, seen)

    @property
    def norm(self) -> Callable[..., Tensor]:
        """A function that graphs can call in the place of a norm."""

        def observed_norm(
            node: str,
            x: Tensor,
            weight: Tensor | None,
            bias: Tensor | None,
            eps: float,
            channels: Tensor | None,
        ) -> Tensor:
            """Batch norm [B, C, ...] by the statistics of `x` itself, which the probe sees.

            A lone value per channel has no variance: it goes through unscaled and is not counted.
            """
            if x.numel() <= x.shape[1]:
                return x
            self.note(node, x, channels)
            return F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)

        return observed_norm


def _observing(graph: fx.Graph, sites: Sequence[_Site], probe: _Probe) -> fx.Graph:
    """The graph with the norms at `sites` on batch statistics."""
    wanted, norm = {site.node for site in sites}, probe.norm
    for node in list(graph.nodes):
        if node.name in wanted:
            a = bind(node)
            node.target = norm
            mean = a["running_mean"]
            channels = mean.args[2] if mean.target is ops.take else None
            node.args = (node.name, a["input"], a["weight"], a["bias"], a["eps"], channels)
            node.kwargs = {}
    graph.eliminate_dead_code()
    return graph


def _statistics(
    dyn: DynamicModel, columns: Columns, sites: Sequence[_Site], inputs: Iterable[list[Any]]
) -> dict[str, Tensor]:
    """New statistics by state name, from one round over the batches of all processes."""
    probe, signature = _Probe(dyn, columns, sites), dyn.program.signature
    graph = _observing(without_gates(dyn.program.graphs["eval"]), sites, probe)
    forward = compile_graph(graph, "recalibration", dyn.program.state)
    for flat in inputs:
        probe.rows = torch.arange(signature.rows(flat))
        if len(probe.rows) > 1:
            forward(probe, *flat)
    found: dict[str, Tensor] = {}
    for names, sums in _over_all(probe):
        if float(sums[2].min()) < 2:
            raise InputError(
                "recalibration saw no batch with at least two samples",
                fix="give training batches of two samples or more",
            )
        found.update(zip(names, _moments(sums), strict=True))
    return found


def _learned(dyn: DynamicModel, sites: Sequence[_Site], inputs: Iterable[list[Any]]) -> dict[str, Tensor]:
    """New statistics by state name along the learned routes; channels that few samples reach keep theirs."""
    if not sites:
        return {}
    probe, signature = _Probe(dyn, {}, sites), dyn.program.signature
    graph = _observing(copy_graph(dyn.program.graphs["eval"]), sites, probe)
    types = dyn.facts.dims.graphs["eval"].types
    segments = cut(graph, types, dyn.program)
    names = [node.name for node in flat_inputs(graph)]
    for flat in inputs:
        run = SparseRun(segments, types, dyn.choices)
        run.run(dict(zip(names, flat, strict=True)), signature.rows(flat), Learned(), {})
    tensors, found = state_tensors(dyn.program.state), dict[str, Tensor]()
    for names, sums in _over_all(probe):
        for name, value in zip(names, _moments(sums), strict=True):
            found[name] = torch.where(sums[2] >= _ENOUGH, value, tensors[name].double().cpu())
    return found


def _over_all(probe: _Probe) -> Iterator[tuple[tuple[str, str], Tensor]]:
    """Names of statistics and their sums [3, C] over all processes."""
    sums = total(torch.cat(list(probe.sums.values()), 1))
    parts = torch.split(sums, [one.shape[1] for one in probe.sums.values()], 1)  # pyright: ignore
    yield from zip(probe.sums, cast("Sequence[Tensor]", parts), strict=True)


def _moments(sums: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, unbiased variance) [C] of the sums [3, C] of a probe; of no meaning below two values."""
    count = sums[2].clamp(min=2)
    mean, square = sums[0] / count, sums[1] / count
    return mean, (square - mean**2).clamp(min=0) * count / (count - 1)


def _decisions(dyn: DynamicModel, columns: Columns) -> dict[str, Decision]:
    """One row per choice: its column, or full capacity."""
    found: dict[str, Decision] = {}
    for choice in dyn.choices.values():
        at = columns.get(choice.name)
        row = choice.full if at is None else choice.row(at)
        found[choice.name] = Decision(torch.tensor([row]), row.index(max(row)))
    return found
