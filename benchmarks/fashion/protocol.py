"""One run: train the source, make it dynamic, train to a target of MACs, measure once on the test images.

Controls: static networks of the same share of MACs and of the source's size, trained for as many epochs in
total; every fixed route of the same dynamic model; the same mix of routes dealt out at random. Epochs and
thresholds are chosen on validation images. What a run needs is kept: it resumes, and others use it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

import dyncompile as dc
from benchmarks.fashion import leaving, measures
from benchmarks.fashion.baselines import Training, accuracy, train
from benchmarks.fashion.data import Batches, Data
from benchmarks.fashion.methods import METHODS, Effort, Method, Spec
from benchmarks.fashion.networks import build, count_macs, scale_for
from benchmarks.fashion.progress import bar
from benchmarks.record import RESULTS
from benchmarks.stages import Stages, is_done, keep, quiet

_TAUGHT = "static, taught"
WORK = Path(__file__).parents[2] / "out" / "fashion"


@dataclass(frozen=True, slots=True)
class Run:
    """What identifies a run; `quick` ones are kept apart from results."""

    network: str
    method: str
    target: float
    seed: int
    effort: Effort
    quick: bool = False

    @property
    def name(self) -> str:
        """``<network>-<method>-<target>-s<seed>``."""
        return f"{self.network}-{self.method}-{self.target:g}-s{self.seed}"

    @property
    def result(self) -> Path:
        """Where its results are."""
        return (WORK / "quick" if self.quick else RESULTS / "fashion") / f"{self.name}.json"

    @property
    def kept(self) -> Path:
        """Where what it shares with runs of other methods and targets is."""
        return WORK / f"{self.network}-s{self.seed}-{self.effort.key}"

    @property
    def done(self) -> bool:
        """Whether there are results of this effort, of the method as it is now specified."""
        return is_done(self.result, self.effort, self.spec)

    @property
    def spec(self) -> Spec:
        """What `dynamize` is given."""
        return METHODS[self.method].spec(self.network, self.target)

    @property
    def lacks_control(self) -> bool:
        """Whether the method learns from a teacher, and the results have no static network that does."""
        return METHODS[self.method].taught and _TAUGHT not in json.loads(self.result.read_text())


@dataclass
class Protocol:
    """Carries out one run; its stages are timed as they pass."""

    run: Run
    data: Data
    progress: bool = True
    stages: Stages = field(default_factory=Stages)

    def execute(self) -> Path:
        """Train, measure, write; returns the path of the results."""
        source = self._source()
        dyn, history = self._dynamic(source)
        return keep(self.run.result, {**self._identity(), **self._measured(source, dyn, history)})

    def complete(self) -> Path:
        """Add the control that the results lack; the rest of them stays."""
        found = json.loads(self.run.result.read_text())
        return keep(self.run.result, {**found, **self._taught(self._source()), "machine": found["machine"]})

    def _identity(self) -> dict[str, Any]:
        run = self.run
        return {
            **{key: getattr(run, key) for key in ("network", "method", "target", "seed")},
            "spec": run.spec,
            "effort": asdict(run.effort),
            "samples": {
                name: len(getattr(self.data, name).labels) for name in ("train", "validation", "test")
            },
        }

    @property
    def _method(self) -> Method:
        return METHODS[self.run.method]

    # -- training -----------------------------------------------------------------------------

    def _source(self) -> nn.Module:
        net = build(self.run.network, seed=self.run.seed)
        path = self.run.kept / "source.safetensors"
        if path.is_file():
            net.load_state_dict(safetensors.torch.load_file(path))
            return net.eval()
        self._static("source", net, self.run.effort.source)
        _keep_weights(net, path)
        return net.eval()

    def _static(self, what: str, net: nn.Module, epochs: int, teacher: nn.Module | None = None) -> float:
        """Train a static network in place; returns its validation accuracy."""
        effort, seed = self.run.effort, self.run.seed
        asked = Training(
            epochs, effort.rate, effort.batch, seed, effort.shift, effort.images, teacher=teacher
        )
        with bar(f"{self.run.network} s{self.run.seed}: {what}", shown=self.progress) as watch:
            return self.stages.timed(what, lambda: train(net, self.data, asked, watch))

    def _dynamic(self, source: nn.Module) -> tuple[dc.DynamicModel, dict[str, Any]]:
        """The model at its target, and what training says of validation and calibration."""
        run, first = self.run, f"{self._method.kept(self.run.network, self.run.target)}-shared"
        dyn = self.stages.timed("dynamize", lambda: dc.dynamize(source, run.spec, self.data.train.images[:2]))
        shared, own = self._method.recipes(run.effort, run.target)
        for recipe, name in ((shared, first), (own, f"{run.method}-{run.target:g}")):
            if recipe.phases:
                history = self._fit(dyn, recipe, name)
        found = {"epochs": [asdict(epoch) for epoch in history.epochs], "calibration": history.calibration}
        if dyn.exits:
            validation = self.data.validation.chunks()
            found["exits"] = asdict(dc.calibrate_exit(dyn, validation, target=run.target))
        return dyn.eval(), found

    def _fit(self, dyn: dc.DynamicModel, recipe: Any, name: str) -> Any:
        effort = self.run.effort
        batches = Batches.seeded(self.data.train, effort.batch, self.run.seed, effort.shift, effort.images)
        history = dc.fit(
            dyn,
            recipe,
            batches,
            list(self.data.validation.chunks()),
            seed=self.run.seed,
            directory=self.run.kept / name,
            progress=self.progress,
        )
        self.stages.seconds[name] = round(history.seconds, 1)
        return history

    # -- measuring ----------------------------------------------------------------------------

    def _measured(self, source: nn.Module, dyn: dc.DynamicModel, history: dict[str, Any]) -> dict[str, Any]:
        run, test = self.run, self.data.test
        found, route = self.stages.timed("test", lambda: measures.learned(dyn, test))
        small = build(run.network, scale_for(run.network, run.target), run.seed)
        contenders = {"dynamic": dyn, "static": small.eval()}
        return {
            "source": self._of_static(source, 1.0, run.effort.source),
            "dynamic": {**found, "training": history},
            "static": [self._baseline(share) for share in (run.target, 1.0)],
            **self._taught(source),
            "speed": self.stages.timed(
                "speed", lambda: measures.speed(contenders, source, test, run.effort.pairs)
            ),
            **(self._controls_of_exits(dyn, route) if dyn.exits else self._controls(dyn, route)),
            "seconds": self.stages.seconds,
        }

    def _controls(self, dyn: dc.DynamicModel, route: dc.Route) -> dict[str, Any]:
        """Every uniform route, and the same routes for other images."""
        test, draws, seed = self.data.test, self.run.effort.draws, self.run.seed
        return {
            "fixed": self.stages.timed("fixed", lambda: measures.fixed(dyn, test)),
            "random": self.stages.timed(
                "random", lambda: measures.random_routing(dyn, test, route, draws, seed)
            ),
        }

    def _controls_of_exits(self, dyn: dc.DynamicModel, route: dc.Route) -> dict[str, Any]:
        """Every exit for all, the same mix of exits for anybody, and what other thresholds would give."""
        stages = self.stages.timed("fixed", lambda: leaving.stages(dyn, self.data.test))
        return {
            "fixed": stages,
            "random": leaving.blind(stages, leaving.left(dyn, route)),
            "curve": self.stages.timed("curve", lambda: leaving.curve(dyn, self.data)),
        }

    def _taught(self, source: nn.Module) -> dict[str, Any]:
        """A static network of the target's MACs that learns from the source, where the method does."""
        return {_TAUGHT: self._baseline(self.run.target, source)} if self._method.taught else {}

    def _baseline(self, share: float, teacher: nn.Module | None = None) -> dict[str, Any]:
        """A static network of this share of MACs, trained as long as source and dynamic model together."""
        what = "static" if teacher is None else "static-taught"
        path = self.run.kept / f"{what}-{share:g}.json"
        if path.is_file():
            return json.loads(path.read_text())
        scale, epochs = scale_for(self.run.network, share), self.run.effort.total
        net = build(self.run.network, scale, self.run.seed)
        validation = self._static(f"{what} {share:g}", net, epochs, teacher)
        full = count_macs(build(self.run.network))
        found = self._of_static(net.eval(), count_macs(net) / full, epochs)
        path.write_text(json.dumps({**found, "scale": scale, "validation": validation}))
        return json.loads(path.read_text())

    def _of_static(self, net: nn.Module, share: float, epochs: int) -> dict[str, Any]:
        return {
            "share": share,
            "accuracy": accuracy(net, self.data.test),
            "macs": count_macs(net),
            "parameters": sum(p.numel() for p in net.parameters()),
            "epochs": epochs,
        }


def _keep_weights(net: nn.Module, path: Path) -> None:
    """The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".partial")
    safetensors.torch.save_file({name: value.contiguous() for name, value in net.state_dict().items()}, aside)
    aside.rename(path)


def execute(run: Run, data: Data, *, progress: bool = True, anew: bool = False) -> Path:
    """One run on its share of the data, or what its results lack; their path."""
    with quiet(run.seed):
        part = data if run.effort.samples is None else data.head(run.effort.samples)
        protocol = Protocol(run, part, progress)
        return protocol.execute() if anew or not run.done else protocol.complete()
