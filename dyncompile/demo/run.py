"""The demonstration from data to results."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from dyncompile.demo.config import DemoConfig, Watch
from dyncompile.demo.digits import Digits, Split, load_digits
from dyncompile.demo.network import SmallResNet
from dyncompile.demo.results import DemoResult, LearnedResult, WidthResult
from dyncompile.demo.training import accuracy, train_dynamic, train_source
from dyncompile.deploy import specialize
from dyncompile.latency import compare
from dyncompile.pipeline import dynamize
from dyncompile.policies import Forced, Learned
from dyncompile.runtime.model import DynamicModel
from dyncompile.verify import verify

T = TypeVar("T")


def run_demo(config: DemoConfig | None = None, watch: Watch = lambda stage, done, total: None) -> DemoResult:
    """Train a small ResNet on digits, make its width dynamic, train that, verify it, measure it.

    One torch thread; the global random state and the number of threads are as before afterwards.

    Raises:
        DyncompileError: scikit-learn is missing.
        ContractError: the trained dynamic model breaks its contract.
    """
    asked = config or DemoConfig()
    digits = load_digits(asked.seed)
    with _one_thread(), _seeded(asked.seed):
        return _Run(asked, watch, digits).results()


@dataclass
class _Run:
    """One run; `seconds` fills up as its stages pass."""

    config: DemoConfig
    watch: Watch
    digits: Digits
    seconds: dict[str, float] = field(default_factory=dict[str, float])

    def results(self) -> DemoResult:
        net, digits = SmallResNet(), self.digits
        example = digits.train.images[:2]
        self._timed("train source", lambda: train_source(net, digits, self.config, self.watch))
        source_accuracy = accuracy(net.eval(), digits.test)
        dyn = self._stage("dynamize", lambda: dynamize(net, self.config.method, example))
        self._timed("train dynamic", lambda: train_dynamic(dyn, digits, self.config, self.watch))
        report = self._stage("verify", lambda: verify(dyn, net, example))
        return DemoResult(
            config=self.config,
            torch=torch.__version__,
            digits={name: len(getattr(digits, name).labels) for name in ("train", "validation", "test")},
            source_parameters=_parameters(net),
            source_macs=dyn.static_macs,
            source_accuracy=source_accuracy,
            widths=self._timed("measure", lambda: self._widths(dyn, net)),
            learned=measure_learned(dyn, net, digits.test, self.config),
            contract=tuple(str(report).splitlines()),
            seconds=self.seconds,
        )

    def _widths(self, dyn: DynamicModel, net: nn.Module) -> tuple[WidthResult, ...]:
        labels = next(iter(dyn.choices.values())).labels
        found: list[WidthResult] = []
        for column, label in enumerate(labels):
            found.append(measure(dyn, net, label, column, self.digits.test, self.config))
            self.watch("measure every width", column + 1, len(labels))
        return tuple(found)

    def _stage(self, name: str, work: Callable[[], T]) -> T:
        """A stage without inner progress."""
        self.watch(name, 0, 1)
        done = self._timed(name, work)
        self.watch(name, 1, 1)
        return done

    def _timed(self, name: str, work: Callable[[], T]) -> T:
        start = time.perf_counter()
        done = work()
        self.seconds[name] = round(time.perf_counter() - start, 2)
        return done


@torch.no_grad()
def measure(
    dyn: DynamicModel, net: nn.Module, label: str, column: int, split: Split, config: DemoConfig
) -> WidthResult:
    """Specialize one width; compare it with the dynamic model, the labels, and the source's latency."""
    dyn.eval()
    net.eval()
    route = dyn.route(column)
    static = specialize(dyn, route)
    dynamic: Tensor = dyn.run(split.images, policy=Forced(route))[0]
    alone: Tensor = static(split.images)
    images = split.images[: config.batch]
    macs = float(dyn.macs(route)[0])
    return WidthResult(
        label=label,
        macs=macs,
        macs_share=macs / dyn.static_macs,
        parameters=_parameters(static),
        latency=compare(lambda: static(images), lambda: net(images), config.pairs),
        accuracy=accuracy(static, split),
        difference=float((dynamic - alone).abs().max()),
        same_predictions=float((dynamic.argmax(1) == alone.argmax(1)).float().mean()),
    )


@torch.no_grad()
def measure_learned(dyn: DynamicModel, net: nn.Module, split: Split, config: DemoConfig) -> LearnedResult:
    """The widths that the decision net picks, against the same widths for other images."""
    dyn.eval()
    record = dyn.record(split.images, policy=Learned())
    generator = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(len(split.labels), generator=generator)
    dealt = Forced({name: rows[order] for name, rows in record.route.items()})
    (choice,) = dyn.choices.values()
    images = split.images[: config.batch]
    shares = record.route[choice.name].mean(0)
    return LearnedResult(
        macs_share=float(dyn.spent(record.route).mean()) / dyn.static_macs,
        latency=compare(lambda: dyn(images), lambda: net(images), config.pairs),
        accuracy=accuracy(dyn, split),
        shuffled_accuracy=accuracy(lambda x: dyn.run(x, policy=dealt)[0], split),
        use={label: float(share) for label, share in zip(choice.labels, shares, strict=True)},
    )


def _parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@contextmanager
def _seeded(seed: int) -> Generator[None]:
    """Torch's global generator starts from `seed` inside and is as before afterwards."""
    before = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        torch.set_rng_state(before)


@contextmanager
def _one_thread() -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
