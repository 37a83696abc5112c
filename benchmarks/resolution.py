"""Real time of a batch in which every image has its own size, against each size alone at its row count.

ideal = sum over sizes of the time of the static network at that size on the rows that take it, the resize
included. Decisions are forced, uniformly mixed. What the predictor takes is apart: a batch whose images all
take the native size by its decision, over the same batch without it.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import dyncompile as dc
from benchmarks.record import write
from dyncompile import zoo
from dyncompile.latency import compare

MODEL = "torchvision:resnet50"
SIZES = (112, 168)
PAIRS = {8: 9, 32: 5}


def run() -> dict[str, Any]:
    """Time of forced uniform mixtures over the ideal, and of the predictor over the network."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    source = zoo.load(MODEL)
    dyn = dc.dynamize(source.model, f"resolution(sizes={SIZES})", source.args).eval()
    statics = [dc.specialize(dyn, dyn.route(column)) for column in range(dyn.choices["resolution"].width)]
    with torch.inference_mode():
        rows = {str(batch): _measure(dyn, statics, batch, pairs) for batch, pairs in PAIRS.items()}
    meaning = "evaluation time; a third of the rows at each size, shuffled; shares are of the native MACs"
    write("resolution", {"model": MODEL, "sizes": [*SIZES, 224], "batches": rows, "meaning": meaning})
    return {
        f"batch {batch}": f"{found['mixed_over_ideal']['cpu']['median']:.3f} of the ideal, "
        f"{found['mixed_over_native']['cpu']['median']:.3f} of the native size's time at "
        f"{found['macs_of_mixed']:.3f} of its MACs, "
        f"with the predictor {found['predicted_over_native']['cpu']['median']:.3f} of native"
        for batch, found in rows.items()
    }


def _measure(dyn: dc.DynamicModel, statics: list[Any], batch: int, pairs: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, 224, 224, generator=generator)
    columns = torch.arange(batch)[torch.randperm(batch, generator=generator)] % len(statics)
    route = {"resolution": F.one_hot(columns, len(statics)).float()}
    parts: list[Tensor] = [x[columns == column] for column in range(len(statics))]

    def mixed() -> Tensor:
        return dyn.run(x, policy=dc.Forced(route))[0]

    def native() -> Tensor:
        return dyn.run(x, policy=dc.Full())[0]

    def predicted() -> Tensor:
        return dyn.run(x, policy=dc.Learned())[0]

    def ideal() -> list[Tensor]:
        return [static(part) for static, part in zip(statics, parts, strict=True)]

    assert torch.equal(predicted(), native()), "an untrained predictor takes the native size"
    together = mixed()
    for column, found in enumerate(ideal()):
        torch.testing.assert_close(together[columns == column], found, rtol=1e-3, atol=1e-4)
    return {
        "mixed_over_ideal": asdict(compare(mixed, ideal, pairs)),
        "mixed_over_native": asdict(compare(mixed, native, pairs)),
        "predicted_over_native": asdict(compare(predicted, native, pairs)),
        "macs_of_mixed": float(dyn.macs(route).mean()) / dyn.static_macs,
        "macs_of_predictor": dyn.decision_macs / dyn.static_macs,
    }
