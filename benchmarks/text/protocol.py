"""One run: fine-tune MiniLM, make it dynamic, train to a target of MACs, measure once on the test mails.

Controls: MiniLM's first layers and all of them, fine-tuned for as many epochs in total; every fixed route of
the same dynamic model; the same mix of routes dealt out at random. Epochs and thresholds are chosen on
validation mails. Stages are kept: an interrupted run goes on, methods of one seed share the static networks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import dyncompile as dc
from benchmarks.fashion import measures
from benchmarks.fashion.baselines import Training, accuracy, train
from benchmarks.fashion.progress import bar
from benchmarks.record import RESULTS
from benchmarks.stages import Stages, is_done, keep, quiet
from benchmarks.text.data import PER_GROUP, TOKENS, Mails
from benchmarks.text.methods import EFFORTS, METHODS, Effort, Method
from benchmarks.text.network import LAYERS, build
from dyncompile.latency import compare
from dyncompile.train import History

WORK = Path(__file__).parents[2] / "out" / "text"
BATCHES = (1, 32)
_SINGLES = 16
_CLIP = 1.0
_DECAY = 0.01
_NARROWED = 3
"""Layers of the static network that stands beside half of the MACs."""


@dataclass(frozen=True, slots=True)
class Run:
    """What identifies a run; `size` is the name of its effort."""

    method: str
    target: float
    seed: int
    size: str

    @property
    def effort(self) -> Effort:
        """How much training and measuring it takes."""
        return EFFORTS[self.size]

    @property
    def name(self) -> str:
        """``minilm-<method>-<target>-s<seed>``."""
        return f"minilm-{self.method}-{self.target:g}-s{self.seed}"

    @property
    def result(self) -> Path:
        """Where its results are; those of quick ones are kept apart."""
        return (WORK if self.size == "quick" else RESULTS / "text") / self.size / f"{self.name}.json"

    @property
    def kept(self) -> Path:
        """Where what it shares with runs of other methods and targets is."""
        return WORK / f"s{self.seed}-{self.effort.key}"

    @property
    def done(self) -> bool:
        """Whether there are results of this effort."""
        return is_done(self.result, self.effort, METHODS[self.method].spec)


@dataclass
class Protocol:
    """Carries out one run; its stages are timed by the CPU time that they take."""

    run: Run
    data: Mails
    progress: bool = True
    stages: Stages = field(default_factory=lambda: Stages(time.process_time))

    def execute(self) -> Path:
        """Train, measure, write; returns the path of the results."""
        run = self.run
        source, of_source = self._static(LAYERS, run.effort.source)
        small, of_small = self._static(_NARROWED, run.effort.total)
        _, of_long = self._static(LAYERS, run.effort.total)
        dyn, history = self._dynamic(source)
        content = {
            **self._identity(),
            "source": of_source,
            "static": [of_small, of_long],
            **self._measured(dyn, history, {"static": small}, source),
            "cpu_seconds": self.stages.seconds,
        }
        return keep(run.result, content)

    def _identity(self) -> dict[str, Any]:
        run, parts = self.run, {name: getattr(self.data, name) for name in ("train", "validation", "test")}
        return {
            "network": "minilm",
            **{key: getattr(run, key) for key in ("method", "target", "seed")},
            "spec": self._method.spec,
            "effort": asdict(run.effort),
            "tokens": TOKENS,
            "mails per group, at most": PER_GROUP,
            "samples": {name: len(part.labels) for name, part in parts.items()},
            "spam": {name: float(part.labels.float().mean()) for name, part in parts.items()},
        }

    @property
    def _method(self) -> Method:
        return METHODS[self.run.method]

    # -- training -----------------------------------------------------------------------------

    def _static(self, layers: int, epochs: int) -> tuple[nn.Module, dict[str, Any]]:
        """MiniLM's first layers, fine-tuned, and what is measured of it; kept for other runs."""
        effort, kept = self.run.effort, self.run.kept / f"static-{layers}-e{epochs}"
        net = build(layers, self.run.seed)
        facts, weights = kept.with_suffix(".json"), kept.with_suffix(".safetensors")
        if facts.is_file():
            net.load_state_dict(safetensors.torch.load_file(weights))
            return net.eval(), json.loads(facts.read_text())
        asked = Training(epochs, effort.rate, effort.batch, self.run.seed, decay=_DECAY, clip=_CLIP)
        order = torch.Generator().manual_seed(self.run.seed)
        batches = DataLoader(self.data.training_set, effort.batch, shuffle=True, generator=order)
        with bar(f"static, {layers} layers", shown=self.progress) as watch:
            validation = self.stages.timed(kept.name, lambda: train(net, self.data, asked, watch, batches))
        kept.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(net.state_dict(), weights)
        found = {
            "layers": layers,
            "epochs": epochs,
            "share": layers / LAYERS,  # the head's 768 MACs aside, layers are all that is counted
            "validation": validation,
            "accuracy": accuracy(net.eval(), self.data.test),
            "parameters": sum(p.numel() for p in net.parameters()),
        }
        facts.write_text(json.dumps(found))
        return net, found

    def _dynamic(self, source: nn.Module) -> tuple[dc.DynamicModel, dict[str, Any]]:
        """The model at its target, and what training says of validation and calibration."""
        run = self.run
        example = self.data.train.images[:2]
        dyn = self.stages.timed("dynamize", lambda: dc.dynamize(source, self._method.spec, example))
        shared, own = self._method.recipes(run.effort, run.target)
        if shared.phases:
            self._fit(dyn, shared, f"{run.method}-shared")
        history = self._fit(dyn, own, f"{run.method}-{run.target:g}")
        return dyn.eval(), {
            "epochs": [{"phase": e.phase, "validation": dict(e.validation)} for e in history.epochs],
            "calibration": history.calibration,
        }

    def _fit(self, dyn: dc.DynamicModel, recipe: Any, name: str) -> History:
        return self.stages.timed(
            name,
            lambda: dc.fit(
                dyn,
                recipe,
                self.data.training_set,
                list(self.data.validation.chunks(100)),
                batch_size=self.run.effort.batch,
                seed=self.run.seed,
                directory=self.run.kept / name,
                keep_checkpoints=1,
                progress=self.progress,
            ),
        )

    # -- measuring ----------------------------------------------------------------------------

    def _measured(
        self, dyn: dc.DynamicModel, history: dict[str, Any], others: dict[str, nn.Module], source: nn.Module
    ) -> dict[str, Any]:
        run, test = self.run, self.data.test
        found, route = self.stages.timed("test", lambda: measures.learned(dyn, test))
        contenders = {"dynamic": dyn, "dynamic, deployed": dc.deploy(dyn), **others}
        return {
            "dynamic": {**found, "training": history},
            "fixed": self.stages.timed("fixed", lambda: measures.fixed(dyn, test)),
            "random": self.stages.timed(
                "random", lambda: measures.random_routing(dyn, test, route, run.effort.draws, run.seed)
            ),
            "speed": self.stages.timed("speed", lambda: self._speed(contenders, source, run.effort.pairs)),
        }

    @torch.inference_mode()
    def _speed(self, contenders: Mapping[str, nn.Module], source: nn.Module, pairs: int) -> dict[str, Any]:
        """Time of every contender over the source's on the same mails, one by one and in a batch."""
        found: dict[str, Any] = {}
        for batch in BATCHES:
            chunks = self.data.test.images[: batch if batch > 1 else _SINGLES].split(batch)
            for name, net in contenders.items():
                ratio = compare(lambda n=net, c=chunks: _all(n, c), lambda c=chunks: _all(source, c), pairs)
                found[f"{name}, batch {batch}"] = asdict(ratio)
        return found


def _all(net: nn.Module, chunks: tuple[Tensor, ...]) -> list[Any]:
    return [net(words) for words in chunks]


def execute(run: Run, data: Mails, *, progress: bool = True) -> Path:
    """One run on its share of the data; the path of its results."""
    effort = run.effort
    with quiet(run.seed):
        return Protocol(run, data.heads(effort.train, effort.validation, effort.test), progress).execute()
