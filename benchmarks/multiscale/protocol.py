"""One seed: train the source, then all sizes, then the predictor; calibrate it to several budgets; test once.

Thresholds are set on validation scenes; test scenes choose nothing. Controls: every fixed size of the same
network, and the same mix of sizes dealt out to other scenes. A seed's results are kept: a second call does
what is missing.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dyncompile as dc
from benchmarks.fashion import measures
from benchmarks.fashion.baselines import Training, accuracy, train
from benchmarks.fashion.data import Data, Split, load
from benchmarks.fashion.networks import SmallResNet
from benchmarks.multiscale.scenes import BINS, SIDE, Drawn, Scenes, drawn, photographs, products
from benchmarks.record import RESULTS
from benchmarks.stages import is_done, keep, quiet
from dyncompile.latency import compare
from dyncompile.train.calibrate import calibrate
from dyncompile.train.phase import Batch, Optimization

FOLDER = RESULTS / "multiscale"
SPEC = "resolution(sizes=(32, 48), predictor=mobile, view=12)"
CHOICE = "resolution"


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is trained and measured.

    Attributes:
        train, validation, test: scenes per part; training scenes are drawn anew in every epoch.
        source, every, joint, alone: epochs of the source, of all sizes together, of these with the predictor,
            and of the predictor alone.
        rate: peak learning rate of the source; half of it afterwards. gates: the predictor's.
        target: share of MACs that joint training aims at. targets: shares that it is calibrated to.
        draws: random mixes. pairs: interleaved measurements of time.
    """

    train: int = 10_000
    validation: int = 2_000
    test: int = 4_000
    source: int = 4
    every: int = 4
    joint: int = 0
    alone: int = 4
    batch: int = 100
    rate: float = 1e-2
    gates: float = 3e-3
    target: float = 0.6
    targets: tuple[float, ...] = (0.8, 0.7, 0.6, 0.5, 0.4)
    draws: int = 5
    pairs: int = 15


class Network(nn.Module):
    """A stem of stride 4, then three residual stages at 16, 8 and 4 pixels: [B, 1, 64, 64] -> [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = SmallResNet((16, 32, 64))
        self.body.stem.append(nn.MaxPool2d(3, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.body(x)


def seed_results(seed: int, effort: Effort) -> dict[str, Any]:
    """Results of one seed, from its file where that is of this effort."""
    path = FOLDER / f"s{seed}.json"
    if not is_done(path, effort, SPEC):
        start = time.process_time()
        with quiet(seed):
            found = _Seed(seed, effort).execute()
        spent = round(time.process_time() - start, 1)
        content = {"seed": seed, "effort": asdict(effort), "spec": SPEC, **found, "cpu_seconds": spent}
        keep(path, content)
    return json.loads(path.read_text())


class _Seed:
    def __init__(self, seed: int, effort: Effort) -> None:
        self.seed, self.effort = seed, effort
        data = products(load())
        self.products = data.train.head(effort.train)
        self.validation = drawn(data.validation.head(effort.validation), photographs("validation"), 1)
        self.test = drawn(data.test.head(effort.test), photographs("test"), 2)

    def execute(self) -> dict[str, Any]:
        """Train and measure."""
        source = self._source()
        dyn = dc.dynamize(source, SPEC, torch.zeros(2, 1, SIDE, SIDE))
        history = self._fit(dyn)
        fixed = measures.fixed(dyn.eval(), self.test.split)
        for row, column in zip(fixed, range(len(fixed)), strict=True):
            row["by_scale"] = self._by_scale(dyn, dyn.route(column))
        return {
            "static_macs": dyn.static_macs,
            "predictor_share": dyn.decision_macs / dyn.static_macs,
            "source": {"accuracy": accuracy(source, self.test.split), "share": 1.0},
            "fixed": fixed,
            "learned": [self._at(dyn, target) for target in self.effort.targets],
            "training": [asdict(epoch) for epoch in history.epochs],
            "speed": self._speed(dyn, source),
        }

    # -- training -----------------------------------------------------------------------------

    def _scenes(self, batch: int) -> Scenes:
        generator = torch.Generator().manual_seed(self.seed)
        return Scenes(self.products, photographs("train"), batch, generator)

    def _source(self) -> nn.Module:
        effort, net = self.effort, Network()
        data = Data(self.products, self.validation.split, self.test.split)
        asked = Training(effort.source, effort.rate, effort.batch, self.seed)
        train(net, data, asked, batches=self._scenes(effort.batch))
        return net.eval()

    def _fit(self, dyn: dc.DynamicModel) -> Any:
        effort = self.effort
        recipe = dc.recipes.resolution(
            target=effort.target,
            pretrain_epochs=effort.every,
            joint_epochs=effort.joint,
            gate_epochs=effort.alone,
            base=Optimization("adamw", rate=effort.rate / 2, decay=0.02),
            gates=Optimization("adamw", rate=effort.gates),
        )
        validation = list(self.validation.split.chunks())
        return dc.fit(dyn, recipe, self._scenes(effort.batch), validation, seed=self.seed, progress=False)

    # -- measuring ----------------------------------------------------------------------------

    def _at(self, dyn: dc.DynamicModel, target: float) -> dict[str, Any]:
        """The predictor calibrated on validation to a share of MACs, on the test scenes."""
        batches = [Batch((images,), {}, labels) for images, labels in self.validation.split.chunks()]
        calibration = calibrate(dyn, batches, target)
        found, route = measures.learned(dyn, self.test.split)
        mix = measures.random_routing(dyn, self.test.split, route, self.effort.draws, self.seed)
        sizes = {
            name: route[CHOICE][self.test.within(*sides)].mean(0).tolist() for name, sides in BINS.items()
        }
        return {
            **found,
            "target": target,
            "validation_share": calibration.reached,
            "random": mix,
            "sizes_by_scale": sizes,
            "by_scale": self._by_scale(dyn, route),
        }

    def _by_scale(self, dyn: dc.DynamicModel, route: dc.Route) -> dict[str, float]:
        """Accuracy for small, medium and large products."""
        found: dict[str, float] = {}
        for name, sides in BINS.items():
            part = _part(self.test, rows := self.test.within(*sides))
            own = {key: value if len(value) == 1 else value[rows] for key, value in route.items()}
            found[name] = measures.forced(dyn, part, own)
        return found

    def _speed(self, dyn: dc.DynamicModel, source: nn.Module) -> dict[str, Any]:
        """Time of the learned policy at the last target over the source's."""
        images = self.test.split.images[:128]
        with torch.inference_mode():
            return asdict(compare(lambda: dyn(images), lambda: source(images), self.effort.pairs))


def _part(scenes: Drawn, rows: Tensor) -> Split:
    return Split(scenes.split.images[rows], scenes.split.labels[rows])


def results(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """What is there, by seed."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("s*.json"))]
