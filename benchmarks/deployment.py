"""Deployed models against what they replace: the source, static networks of every width, the ideal of a mix.

All candidates of a table run in turn, round after round, in one process on one thread; what is reported is
the quartiles of the ratios of CPU times within a round. Results are written after every model.

    full       deployed at full capacity over the source
    width      a specialized graph, the deployed model forced to the width, and the deployed model whose gate
               always picks it, each over a static network of that width built by hand
    real       deployed at a width over the source, beside the ratio of MACs
    mixed      rows dealt evenly to the widths: sum of the static networks' times at their shares of the batch
               over the time of the deployed model (1 is the ideal)
    memory     weights and the peak of live activations over those of the source
"""

from __future__ import annotations

import statistics
import time
import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import dyncompile as dc
from benchmarks.record import write
from benchmarks.twins import agree, twin
from dyncompile import zoo
from dyncompile.deploy import Deployed
from dyncompile.latency import Ratio

WIDTHS = ("torchvision:resnet50", "timm:vit_small_patch16_224", "torchvision:mobilenet_v2")
FULL = (
    *WIDTHS,
    "hf:BertForSequenceClassification",
    "torchvision:swin_t",
    "timm:vit_base_patch16_224",
)
COMPILED = ("torchvision:resnet50", "timm:vit_small_patch16_224")
FULL_ROUNDS = {1: 9, 8: 5}
WIDTH_ROUNDS = 9
MIXED_ROUNDS = 4
MIXED_BATCH = 32
METHOD = "dsnet"

Runs = Mapping[str, Callable[[], object]]


def run() -> dict[str, Any]:
    """All tables of all models; figures per line."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name in FULL:
        found[name] = _model(name)
        meaning = "ratios of CPU times within rounds, see benchmarks/deployment.py"
        write("deployment", {"models": found, "meaning": meaning, "method": METHOD})
    return _lines(found)


def compiled() -> dict[str, Any]:
    """Deployed with inductor at full capacity over the compiled source; takes minutes of compiling."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name in COMPILED:
        source = zoo.load(name)
        model = source.model.eval().requires_grad_(False)
        fast = dc.deploy(dc.dynamize(model, METHOD, source.args), backend="inductor")
        (x,) = _batch(source, 1)
        whole: Any = torch.compile(model, fullgraph=True)
        runs = {"source": lambda x=x, f=whole: f(x), "full": lambda x=x, f=fast: f.run(x, policy=dc.Full())}
        found[name] = {"full, batch 1": _over(times(runs, FULL_ROUNDS[1]), "full", "source")}
        write("deployment_compiled", {"models": found, "method": METHOD})
    return _lines(found)


def _model(name: str) -> dict[str, Any]:
    source = zoo.load(name)
    model = source.model.eval().requires_grad_(False)
    dyn = dc.dynamize(model, METHOD, source.kwargs or source.args).eval()
    fast = dc.deploy(dyn)
    found: dict[str, Any] = {}
    for batch, rounds in FULL_ROUNDS.items():
        args = _batch(source, batch)
        runs = {
            "source": lambda args=args: _call(model, source, args),
            "full": lambda args=args: _call(fast, source, args, dc.Full()),
        }
        found[f"full, batch {batch}"] = _over(times(runs, rounds), "full", "source")
    if name in WIDTHS:
        found.update(_widths(model, dyn, source))
    return found


# -- widths -------------------------------------------------------------------------------------------------


def _widths(model: nn.Module, dyn: dc.DynamicModel, source: zoo.Source) -> dict[str, Any]:
    columns = range(dyn.choices["width"].width)
    (x,), found = _batch(source, 1), dict[str, Any]()
    static = [dc.specialize(dyn, dyn.route(column)) for column in columns]
    hand = [twin(model, dict(one.state_dict())) for one in static]
    macs = [float(dyn.macs(dyn.route(column))[0]) / dyn.static_macs for column in columns]
    fast, packed = dc.deploy(dyn), dc.deploy(dyn, memory="packed")
    runs: dict[str, Callable[[], object]] = {"source": lambda: model(x)}
    for column in columns:
        forced, gated = dc.Forced(dyn.route(column)), _always(dyn, column)
        runs |= {
            f"hand {column}": lambda f=hand[column]: f(x),
            f"specialized {column}": lambda f=static[column]: f(x),
            f"forced {column}": lambda p=forced: fast.run(x, policy=p),
            f"packed {column}": lambda p=forced: packed.run(x, policy=p),
            f"gated {column}": lambda f=gated: f(x),
        }
    measured = times(runs, WIDTH_ROUNDS)
    for column, label in enumerate(dyn.choices["width"].labels):
        row = {
            kind: _over(measured, f"{kind} {column}", f"hand {column}")
            for kind in ("specialized", "forced", "packed", "gated")
        }
        real = _over(measured, f"forced {column}", "source")
        apart = agree(static[column], hand[column], x)
        assert apart < 1e-4, f"the network built by hand computes something else: {apart}"
        found[f"width {label}, batch 1"] = {
            **row,
            "real": real,
            "macs": macs[column],
            "twin_differs_by": apart,
        }
    found["memory, batch 8"] = _memory(model, fast, _batch(source, 8)[0])
    found["packed megabytes"] = packed.packed_bytes / 2**20
    found |= _mixed(fast, packed, hand, source)
    return found


def _always(dyn: dc.DynamicModel, column: int) -> Deployed:
    """A deployed copy whose gates run and always say `column`."""
    fast = dc.deploy(dyn)
    for name in fast.gated:
        head = f"dyn.gates.{name}.head"
        fast.get_parameter(f"{head}.weight").zero_()
        fast.get_parameter(f"{head}.bias").copy_(torch.eye(fast.choices[name].width)[column])
    return fast


def _mixed(fast: Deployed, packed: Deployed, hand: list[nn.Module], source: zoo.Source) -> dict[str, Any]:
    (x,), count = _batch(source, MIXED_BATCH), len(hand)
    columns = torch.arange(MIXED_BATCH) % count
    route = dc.Forced({"width": torch.eye(count)[columns]})
    runs: dict[str, Callable[[], object]] = {
        "shared": lambda: fast.run(x, policy=route),
        "packed": lambda: packed.run(x, policy=route),
    }
    runs |= {f"hand {i}": lambda f=f: f(x) for i, f in enumerate(hand)}
    measured = times(runs, MIXED_ROUNDS)
    share = [float((columns == i).sum()) / MIXED_BATCH for i in range(count)]
    ideal = [
        sum(part * measured[f"hand {i}"][r] for i, part in enumerate(share)) for r in range(MIXED_ROUNDS)
    ]
    return {
        f"mixed, batch {MIXED_BATCH}": {
            kind: asdict(Ratio.of([a / b for a, b in zip(ideal, measured[kind], strict=True)]))
            for kind in ("shared", "packed")
        }
    }


# -- time ---------------------------------------------------------------------------------------------------


def times(runs: Runs, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each candidate in every round, after one round that does not count; order alternates."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for turn in range(-1, rounds):
            names = list(runs) if turn % 2 else list(runs)[::-1]
            for name in names:
                start = time.process_time_ns()
                runs[name]()
                if turn >= 0:
                    found[name].append((time.process_time_ns() - start) / 1e9)
    return found


def _over(measured: Mapping[str, list[float]], one: str, base: str) -> dict[str, Any]:
    """Quartiles of the ratios within rounds."""
    ratios = [a / b for a, b in zip(measured[one], measured[base], strict=True)]
    return {**asdict(Ratio.of(ratios)), "rounds": len(ratios), "seconds": statistics.median(measured[one])}


# -- memory -------------------------------------------------------------------------------------------------


def _memory(model: nn.Module, fast: Deployed, x: Tensor) -> dict[str, float]:
    """Weights and peak activations over the source's: at full capacity and with every width in the batch."""
    own = _bytes(model) + peak(lambda: model(x))
    width = fast.choices["width"].width
    mixed = dc.Forced({"width": torch.eye(width)[torch.arange(len(x)) % width]})
    return {
        "source megabytes": own / 2**20,
        "full": (_bytes(fast) + peak(lambda: fast.run(x, policy=dc.Full()))) / own,
        "mixed": (_bytes(fast) + peak(lambda: fast.run(x, policy=mixed))) / own,
    }


def _bytes(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def peak(call: Callable[[], object]) -> int:
    """Most bytes of new tensors alive at once during a call that has run before."""
    with torch.inference_mode():
        call()
        with _Alive() as alive:
            call()
    return alive.peak


class _Alive(TorchDispatchMode):
    """Counts the storages that operators make while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for value in _tensors(out):
            storage = value.untyped_storage()
            at, size = storage.data_ptr(), storage.nbytes()
            if at not in given and at not in self._seen:
                self._seen.add(at)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, at, size)
        return out

    def _freed(self, at: int, size: int) -> None:
        self._seen.discard(at)
        self.now -= size


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


# -- inputs -------------------------------------------------------------------------------------------------


def _batch(source: zoo.Source, rows: int) -> tuple[Any, ...]:
    """The example's tensors, by position or keyword, with so many rows; numbers anew, ids repeated."""
    given = tuple(source.args) or tuple(source.kwargs.values())
    random = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(rows, *x.shape[1:], generator=random)
        if x.is_floating_point()
        else x[torch.arange(rows) % len(x)]
        for x in given
    )


def _call(model: Any, source: zoo.Source, args: tuple[Any, ...], policy: Any = None) -> object:
    named = {} if source.args else dict(zip(source.kwargs, args, strict=True))
    given = args if source.args else ()
    return model(*given, **named) if policy is None else model.run(*given, policy=policy, **named)


def _lines(found: Mapping[str, Any]) -> dict[str, str]:
    lines: dict[str, str] = {}
    for name, rows in found.items():
        for row, values in rows.items():
            parts = values.items() if isinstance(values, dict) else [("", values)]
            nested = {k: v["median"] if isinstance(v, dict) else v for k, v in parts if k != "rounds"}
            lines[f"{name} {row}"] = ", ".join(f"{k} {v:.3f}" for k, v in nested.items())
    return lines
