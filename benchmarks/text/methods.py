"""What is run: how long, which methods, which recipes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import dyncompile as dc
from dyncompile.train.phase import Optimization, Recipe


@dataclass(frozen=True, slots=True)
class Effort:
    """How much training and measuring one run takes.

    Attributes:
        source, base, gates: epochs of the source, of all routes together, and of the decision nets.
        train, validation, test: mails in every part, at most.
        rate: peak learning rate of the source and of static networks.
        batch: mails per training step.
        pairs: interleaved measurements of time. draws: random routings.
    """

    source: int
    base: int
    gates: int
    train: int
    validation: int
    test: int
    rate: float = 1e-4
    batch: int = 16
    pairs: int = 7
    draws: int = 3

    @property
    def total(self) -> int:
        """Epochs of a static network that is trained as long as source and dynamic model together."""
        return self.source + self.base + self.gates

    @property
    def key(self) -> str:
        """Names what is kept between runs."""
        epochs, mails = (
            f"{self.source}.{self.base}.{self.gates}",
            f"{self.train}.{self.validation}.{self.test}",
        )
        return f"e{epochs}-n{mails}-b{self.batch}-r{self.rate:g}"


EFFORTS: Mapping[str, Effort] = {
    "quick": Effort(1, 1, 1, train=24, validation=24, test=24, batch=8, pairs=3, draws=1),
    "short": Effort(2, 2, 1, train=256, validation=200, test=500),
    "long": Effort(2, 4, 1, train=800, validation=300, test=1000),
}
"""quick tries the machinery, its numbers mean nothing; of one core a run takes minutes, long ones three times
as many."""


@dataclass(frozen=True)
class Method:
    """A way to make MiniLM dynamic: what `dynamize` and `fit` are given.

    Attributes:
        shared: leading phases of the recipe that do not depend on the target; they are trained once for all.
        targets: shares of the source's MACs.
    """

    spec: str
    recipe: Callable[[Effort, float], Recipe]
    shared: int
    targets: tuple[float, ...]

    def recipes(self, effort: Effort, target: float) -> tuple[Recipe, Recipe]:
        """What all targets share, and what `target` needs on top."""
        whole = self.recipe(effort, target)
        first = replace(whole, phases=whole.phases[: self.shared], target=None)
        return first, replace(whole, phases=whole.phases[self.shared :])


def _dsnet(effort: Effort, target: float) -> Recipe:
    """All widths and depths together, then a gate that learns what each is worth to a mail."""
    return dc.recipes.dsnet(
        target=target,
        supernet_epochs=effort.base,
        gate_epochs=effort.gates,
        random_widths=1,
        average=None,
        sparsification="worth",
        base=Optimization(rate=effort.rate, decay=0.01),
        gates=Optimization(rate=3e-3),
        clip=1.0,
    )


def _lcnet(effort: Effort, target: float) -> Recipe:
    """Gates alone, then everything while the budget falls."""
    return dc.recipes.lcnet(
        target=target,
        gate_epochs=effort.gates,
        joint_epochs=effort.base,
        base=Optimization(rate=effort.rate, decay=0.01),
        clip=1.0,
    )


# Blocks alone: the first third, two thirds or all of them; the gate reads the first layer.
_DROPPED = "dsnet(ratios=(1, 1, 1), depth=(0.34, 0.67, 1), start=2)"
_SLICED = "dsnet(ratios=(0.75, 0.9, 1), depth=(0.34, 0.67, 1), start=2)"

METHODS: Mapping[str, Method] = {
    "dsnet": Method(_DROPPED, _dsnet, shared=1, targets=(0.5, 0.35)),
    "dsnet-narrow": Method(_SLICED, _dsnet, shared=1, targets=(0.5,)),
    "lcnet-layers": Method("lcnet(channels=False)", _lcnet, shared=0, targets=(0.5,)),
    "lcnet": Method("lcnet", _lcnet, shared=0, targets=(0.5,)),
}
"""`dsnet` drops whole blocks, `dsnet-narrow` narrows what it keeps as well."""
