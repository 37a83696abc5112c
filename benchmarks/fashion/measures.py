"""What is measured of a trained dynamic model: accuracy against MACs, controls, time.

Shares are of the source's MACs. The learned policy pays for its decision nets; forced routes do not run them.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

import dyncompile as dc
from benchmarks.fashion.data import Split
from dyncompile.latency import compare
from dyncompile.train.diagnostics import ChoiceUse, summarize

BATCHES = (1, 256)
_SINGLES = 32
_READABLE = 64


@torch.no_grad()
def learned(dyn: dc.DynamicModel, split: Split) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What the decision nets achieve and spend, and the route [N, width] that they take."""
    right, routes = [], []
    for images, labels in split.chunks():
        output, route = dyn.run(images, policy=dc.Learned())
        right.append(output.argmax(1) == labels)
        routes.append(route)
    route = {name: torch.cat([one[name] for one in routes]) for name in dyn.choices}
    path = float(dyn.macs(route).mean()) / dyn.static_macs
    deciding = float(dyn.spent(route).mean()) / dyn.static_macs - path
    summary = summarize([route], dyn.choices)
    use = asdict(summary)
    found = {
        "accuracy": float(torch.cat(right).float().mean()),
        "share": path + deciding,
        "path_share": path,
        "decision_share": deciding,
        "routes": _by_route(dyn, route, torch.cat(right)),
        "use": {
            **{key: use[key] for key in ("unique", "possible", "entropy", "top")},
            "choices": {name: _taken(one) for name, one in summary.choices.items() if one.exclusive},
        },
        **_parameters(dyn, route),
    }
    return found, route


def _taken(use: ChoiceUse) -> dict[str, Any]:
    """Share of the samples that take each alternative, and whether one that is offered is all or nothing."""
    columns = dict(zip(use.labels, use.columns, strict=True))
    return {
        "columns": columns,
        "entropy": use.entropy,
        "extreme": not all(0.01 <= n <= 0.99 for n in use.columns),
    }


def _parameters(dyn: dc.DynamicModel, route: Mapping[str, Tensor]) -> dict[str, Any]:
    """Parameters over the source's: those that are stored, and those that a path reads, mean over samples."""
    own = dyn.source_parameters
    stored = {"stored_parameter_share": dyn.stored_parameters / own}
    if any(choice.domain is dc.Domain.MIXTURE for choice in dyn.choices.values()):
        return stored  # mixing reads all
    return {**stored, "active_parameter_share": float(dyn.active_parameters(route).mean()) / own}


def _by_route(dyn: dc.DynamicModel, route: Mapping[str, Tensor], right: Tensor) -> list[dict[str, Any]]:
    """The most used routes: how many samples take each, what it costs, how often it is right.

    A row of more than `_READABLE` numbers (every channel's bit) is left out.
    """
    table = torch.cat([route[name] for name in dyn.choices], 1)
    unique, which, counts = torch.unique(table, dim=0, return_inverse=True, return_counts=True)
    macs = dyn.macs(route) / dyn.static_macs
    return [
        {
            **({"row": unique[i].tolist()} if table.shape[1] <= _READABLE else {}),
            "used": int(counts[i]) / len(table),
            "path_share": float(macs[which == i][0]),
            "accuracy": float(right[which == i].float().mean()),
        }
        for i in counts.argsort(descending=True)[:16].tolist()
    ]


def fixed(dyn: dc.DynamicModel, split: Split) -> list[dict[str, Any]]:
    """Every uniform route for all samples alike: accuracy and MACs."""
    rows: list[dict[str, Any]] = []
    for label, route in _uniform(dyn):
        share = float(dyn.macs(route)[0]) / dyn.static_macs
        rows.append({"label": label, "share": share, "accuracy": forced(dyn, split, route)})
    return rows


def _uniform(dyn: dc.DynamicModel) -> Iterator[tuple[str, dc.Route]]:
    """One column number for all choices where all are one-hot of the same width; else cheapest and full."""
    choices = list(dyn.choices.values())
    if {(c.domain, c.width) for c in choices} == {(dc.Domain.ONE_HOT, choices[0].width)}:
        for column in range(choices[0].width):
            yield choices[0].labels[column], dyn.route(column)
        return
    for label, policy in (("smallest", dc.Smallest()), ("full", dc.Full())):
        yield label, {c.name: policy.decide(c, 1, None) for c in choices}


@torch.no_grad()
def forced(dyn: dc.DynamicModel, split: Split, route: Mapping[str, Tensor]) -> float:
    """Accuracy on a given route: [1, width] for all samples, or [N, width]."""
    right, start = 0, 0
    for images, labels in split.chunks():
        end = start + len(labels)
        rows = {name: row if len(row) == 1 else row[start:end] for name, row in route.items()}
        output, _ = dyn.run(images, policy=dc.Forced(rows))
        right, start = right + int((output.argmax(1) == labels).sum()), end
    return right / len(split.labels)


def random_routing(
    dyn: dc.DynamicModel, split: Split, route: Mapping[str, Tensor], draws: int, seed: int
) -> dict[str, Any]:
    """The same routes, dealt out to other samples: what the mix achieves when nothing is decided."""
    generator = torch.Generator().manual_seed(seed)
    found: list[float] = []
    for _ in range(draws):
        order = torch.randperm(len(split.labels), generator=generator)
        found.append(forced(dyn, split, {name: rows[order] for name, rows in route.items()}))
    deviation = statistics.stdev(found) if draws > 1 else 0.0
    return {"accuracy": statistics.fmean(found), "sd": deviation, "draws": draws}


def speed(contenders: Mapping[str, nn.Module], source: nn.Module, split: Split, pairs: int) -> dict[str, Any]:
    """Time of every contender over the source's, wall and CPU, per batch size; batch 1 is many calls."""
    results: dict[str, Any] = {}
    with torch.inference_mode():
        for name, net in contenders.items():
            for batch in BATCHES:
                chunks = split.images[: batch if batch > 1 else _SINGLES].split(batch)
                time = compare(
                    lambda n=net, c=chunks: [n(x) for x in c], lambda c=chunks: _all(source, c), pairs
                )
                results[f"{name}, batch {batch}"] = asdict(time)
    return results


def _all(net: nn.Module, chunks: tuple[Tensor, ...]) -> list[Any]:
    return [net(x) for x in chunks]
