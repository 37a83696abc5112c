"""Real time of a batch in which every image has its own size, against each size alone at its row count.

ideal = sum over sizes of the time of the static network at that size on the rows that take it, the resize
included; there decisions are forced, uniformly mixed. Over the source, the same sizes are taken with the
predictor asked. What that takes is apart, too: images that all take the native size by its decision, over the
same without it. The dynamic model is deployed.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dyncompile as dc
from benchmarks.memory import keep_memory
from benchmarks.record import write
from dyncompile import zoo
from dyncompile.deploy import Deployed
from dyncompile.latency import compare
from dyncompile.latency.timing import Asked

MODEL = "torchvision:resnet50"
SIZES = (112, 168)
PAIRS = {8: 9, 32: 5}


def run() -> dict[str, Any]:
    """Time of forced uniform mixtures over the ideal, and of the predictor over the network."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    keep_memory()
    source = zoo.load(MODEL)
    dyn = dc.dynamize(source.model, f"resolution(sizes={SIZES})", source.args).eval()
    subject = Subject(
        source.model.eval(),
        dyn,
        dc.deploy(dyn),
        [dc.specialize(dyn, dyn.route(column)) for column in range(dyn.choices["resolution"].width)],
    )
    with torch.inference_mode():
        rows = {str(batch): _measure(subject, batch, pairs) for batch, pairs in PAIRS.items()}
    meaning = "evaluation time; a third of the rows at each size, shuffled; shares are of the native MACs"
    write("resolution", {"model": MODEL, "sizes": [*SIZES, 224], "batches": rows, "meaning": meaning})
    return {
        f"batch {batch}": f"{found['mixed_over_ideal']['cpu']['median']:.3f} of the ideal, "
        f"{found['decided_over_source']['cpu']['median']:.3f} of the source's time at "
        f"{found['macs_of_decided']:.3f} of its MACs, predictor included; "
        f"with it all at native size {found['predicted_over_native']['cpu']['median']:.3f}"
        for batch, found in rows.items()
    }


@dataclass(frozen=True)
class Subject:
    """The source, its dynamic and its deployed form, and the static network of each size."""

    source: nn.Module
    dyn: dc.DynamicModel
    fast: Deployed
    statics: Sequence[nn.Module]


def _measure(one: Subject, batch: int, pairs: int) -> dict[str, Any]:
    dyn, fast, statics = one.dyn, one.fast, one.statics
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, 224, 224, generator=generator)
    columns = torch.arange(batch)[torch.randperm(batch, generator=generator)] % len(statics)
    route = {"resolution": F.one_hot(columns, len(statics)).float()}
    parts: list[Tensor] = [x[columns == column] for column in range(len(statics))]

    def mixed() -> Tensor:
        return fast.run(x, policy=dc.Forced(route))[0]

    def decided() -> Tensor:
        return fast.run(x, policy=Asked(route))[0]

    def native() -> Tensor:
        return fast.run(x, policy=dc.Full())[0]

    def predicted() -> Tensor:
        return fast.run(x, policy=dc.Learned())[0]

    def ideal() -> list[Tensor]:
        return [static(part) for static, part in zip(statics, parts, strict=True)]

    assert torch.equal(predicted(), native()), "an untrained predictor takes the native size"
    together = mixed()
    assert torch.equal(decided(), together)
    for column, found in enumerate(ideal()):
        torch.testing.assert_close(together[columns == column], found, rtol=1e-3, atol=1e-4)
    return {
        "mixed_over_ideal": asdict(compare(mixed, ideal, pairs)),
        "decided_over_native": asdict(compare(decided, native, pairs)),
        "decided_over_source": asdict(compare(decided, lambda: one.source(x), pairs)),
        "predicted_over_native": asdict(compare(predicted, native, pairs)),
        "macs_of_decided": float(dyn.spent(route).mean()) / dyn.static_macs,
    }
