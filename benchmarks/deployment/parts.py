"""What is measured of one model: parts, each of which runs by itself."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch.utils import _pytree as pytree

import dyncompile as dc
from benchmarks.deployment.memory import peak, weight_bytes
from benchmarks.deployment.subject import Subject, call, mixed, some
from benchmarks.twins import agree
from dyncompile.latency import Ratio, Times, time_in_turns

Found = Mapping[str, Any]
FULL_ROUNDS = {1: 9, 8: 3}
WIDTH_ROUNDS = 7
COMPILED_ROUNDS = 25
MIXED_ROUNDS = {32: 4, 128: 2}
Runs = Mapping[str, Callable[[], object]]
KINDS = ("specialized", "forced", "packed", "gated")


def times(runs: Runs, rounds: int, warm_up: int = 1) -> dict[str, Times]:
    """Of each candidate in every round, without autograd."""
    with torch.inference_mode():
        return time_in_turns(runs, rounds, warm_up)


def over(measured: Mapping[str, Times], one: str, base: str) -> dict[str, Any]:
    """Quartiles of the ratios of CPU times within rounds, and the median CPU time of `one`."""
    found = measured[one].over(measured[base])
    return {**asdict(found.cpu), "rounds": found.pairs, "seconds": statistics.median(measured[one].cpu)}


def full(batch: int, one: Subject) -> Found:
    """Deployed at full capacity over the source."""
    x = one.inputs(batch)
    runs = {"source": partial(call, one.model, x), "full": partial(call, one.shared, x, dc.Full())}
    return over(times(runs, FULL_ROUNDS[batch]), "full", "source")


def widths(one: Subject) -> Found:
    """Every width at batch 1: over a network built by hand; with its gate over source and full width."""
    x = one.inputs(1)
    runs: dict[str, Callable[[], object]] = {"source": partial(call, one.model, x)}
    for column in one.columns:
        forced = dc.Forced(one.dyn.route(column))
        runs |= {
            f"hand {column}": partial(call, one.hand[column], x),
            f"specialized {column}": partial(call, one.static[column], x),
            f"forced {column}": partial(call, one.shared, x, forced),
            f"packed {column}": partial(call, one.packed, x, forced),
            f"gated {column}": partial(call, one.gated(column), x),
        }
    measured = times(runs, WIDTH_ROUNDS)
    found: dict[str, Any] = {}
    for column, label in enumerate(one.dyn.choices["width"].labels):
        apart = agree(partial(call, one.static[column], x), partial(call, one.hand[column], x))
        assert apart < 1e-4, f"the network built by hand computes something else: {apart}"
        found[label] = {
            **{kind: over(measured, f"{kind} {column}", f"hand {column}") for kind in KINDS},
            "real": over(measured, f"gated {column}", "source"),
            "own": over(measured, f"gated {column}", f"forced {one.columns[-1]}"),
            "macs": float(one.dyn.spent(one.dyn.route(column))[0]) / one.dyn.static_macs,
            "twin_differs_by": apart,
        }
    return found


def mixture(batch: int, one: Subject) -> Found:
    """All widths in one batch: time of the static networks on their own rows over the deployed model's."""
    x, count = one.inputs(batch), len(one.columns)
    policy, rows = mixed(count, batch)
    warm, first = one.inputs(count), mixed(count, count)[0]
    runs: dict[str, Callable[[], object]] = {}
    for kind, fast in (("shared", one.shared), ("packed", one.packed)):
        with torch.inference_mode():
            call(fast, warm, first)  # makes what a first call makes: no round is spent on it
        runs[kind] = partial(call, fast, x, policy)
    runs |= {f"hand {i}": partial(call, one.hand[i], some(x, rows[i])) for i in one.columns}
    measured = times(runs, MIXED_ROUNDS[batch], warm_up=0)
    ideal = [sum(shares) for shares in zip(*(measured[f"hand {i}"].cpu for i in one.columns), strict=True)]
    return {
        kind: asdict(Ratio.of([a / b for a, b in zip(ideal, measured[kind].cpu, strict=True)]))
        for kind in ("shared", "packed")
    }


def memory(batch: int, one: Subject) -> Found:
    """Weights and peak activations over the source's: at full capacity and with every width in the batch."""
    x = one.inputs(batch)
    own = weight_bytes(one.model) + peak(partial(call, one.model, x))
    policy, _ = mixed(len(one.columns), batch)
    weights = weight_bytes(one.shared)
    found = {
        "source megabytes": own / 2**20,
        "full": (weights + peak(partial(call, one.shared, x, dc.Full()))) / own,
        "mixed": (weights + peak(partial(call, one.shared, x, policy))) / own,
    }
    call(one.packed, x, policy)
    return found | {"packed megabytes": one.packed.packed_bytes / 2**20}


def compiled(one: Subject) -> Found:
    """Full capacity with Inductor over the compiled source, batch 1."""
    x = one.inputs(1)
    fast = dc.deploy(one.dyn, backend="inductor")
    whole: Any = torch.compile(one.model, fullgraph=True)
    runs = {"source": partial(call, whole, x), "full": partial(call, fast, x, dc.Full())}
    with torch.inference_mode():
        first, second = (pytree.tree_leaves(run())[0] for run in (runs["source"], lambda: runs["full"]()[0]))
        assert torch.allclose(first, second, atol=1e-3 * float(first.abs().max()))
    return over(times(runs, COMPILED_ROUNDS), "full", "source")


PARTS: Mapping[str, Callable[[Subject], Found]] = {
    "full, batch 1": partial(full, 1),
    "full, batch 8": partial(full, 8),
    "width, batch 1": widths,
    "memory, batch 8": partial(memory, 8),
    "mixed, batch 32": partial(mixture, 32),
    "mixed, batch 128": partial(mixture, 128),
}
