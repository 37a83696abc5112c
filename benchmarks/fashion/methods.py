"""What the protocol runs: how long, which methods, which recipes. A new method is one entry of `METHODS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import dyncompile as dc
from benchmarks.fashion.data import SHIFT
from dyncompile.errors import DyncompileError
from dyncompile.train.early import EarlyLoss
from dyncompile.train.phase import Optimization, Phase, Recipe
from dyncompile.train.recipes.parts import Supervision


@dataclass(frozen=True, slots=True)
class Effort:
    """How much training and measuring one run takes.

    Attributes:
        source, base, gates: epochs of the source, of all routes together, and of the decision nets.
        rate: peak learning rate of the source and of static networks.
        batch: images per training step. shift: pixels that training images move by, at most.
        pairs: interleaved measurements of time. draws: random routings.
        images: of one epoch, drawn anew from all training images.
        samples: images per part of the data; None takes all.
    """

    source: int
    base: int
    gates: int
    rate: float
    batch: int = 128
    shift: int = SHIFT
    pairs: int = 30
    draws: int = 10
    images: int = 20_000
    samples: int | None = None

    @property
    def total(self) -> int:
        """Epochs of a static network that is trained as long as source and dynamic model together."""
        return self.source + self.base + self.gates

    @property
    def key(self) -> str:
        """Names what is kept between runs."""
        epochs = f"e{self.source}.{self.base}.{self.gates}"
        return f"{epochs}-b{self.batch}-m{self.shift}-r{self.rate:g}-n{self.images}of{self.samples or 'all'}"


EFFORTS: Mapping[str, Effort] = {
    "resnet": Effort(source=8, base=6, gates=4, rate=1e-2, shift=0),
    "vit": Effort(source=8, base=6, gates=4, rate=2e-3, batch=64, shift=0),
}


SEEDS = (0, 1, 2)


def quick(effort: Effort) -> Effort:
    """A trial of the machinery: its numbers mean nothing."""
    return replace(effort, source=1, base=1, gates=1, batch=64, pairs=3, draws=2, samples=1000)


Spec = str | Sequence[str]
"""What `dynamize` is given."""


@dataclass(frozen=True)
class Method:
    """A way to make a network dynamic.

    Samples that may leave early do so by thresholds that are set after training (`dc.calibrate_exit`), by the
    target; all else meets its target in training.

    Attributes:
        specs: what `dynamize` is given, by network; networks that are missing refuse the method. Where it
            depends on the target, by the smallest target that each serves.
        recipe: what `fit` is given, for an effort and a target share of MACs.
        shared: leading phases of the recipe that do not depend on the target; they are trained once for all.
        base: what these phases are called; methods that agree in spec and shared phases share their training.
        targets: shares of the source's MACs.
        taught: the recipe learns from the source's outputs, too; then so does a static control.
    """

    specs: Mapping[str, Spec | Mapping[float, Spec]]
    recipe: Callable[[Effort, float], Recipe]
    shared: int
    base: str
    targets: tuple[float, ...] = (0.5, 0.3)
    taught: bool = False

    def spec(self, network: str, target: float) -> Spec:
        """What `dynamize` is given. Raises DyncompileError if nothing serves so small a target."""
        return self._chosen(network, target)[0]

    def kept(self, network: str, target: float) -> str:
        """The folder of the shared phases: methods that agree in spec and shared phases share it."""
        return self._chosen(network, target)[1]

    def _chosen(self, network: str, target: float) -> tuple[Spec, str]:
        """The specification of a network at a target, and the name of what is trained for it."""
        given = self.specs[network]
        if not isinstance(given, Mapping):
            return given, self.base
        served = [least for least in given if least <= target]
        if not served:
            fix = f"take {min(given):g} or more"
            raise DyncompileError(f"a target of {target:g} is out of reach", fix=fix)
        return given[max(served)], f"{self.base}-{max(served):g}"

    def recipes(self, effort: Effort, target: float) -> tuple[Recipe, Recipe]:
        """What all targets share, and what `target` needs on top."""
        whole = self.recipe(effort, target)
        first = replace(whole, phases=whole.phases[: self.shared], target=None)
        return first, replace(whole, phases=whole.phases[self.shared :])


_GATE_RATE = 3e-3
_DSNET_GATE_RATE = 1e-2


def _dsnet(effort: Effort, target: float, supervision: Supervision = "try_best") -> Recipe:
    """Nearly all epochs for the supernet: its gate reads few features and has learned them after one.

    The smallest and the largest network learn in every step; there are no others (see `_DSNET`).
    """
    return dc.recipes.dsnet(
        sparsification=supervision,
        supernet_epochs=max(1, effort.base + effort.gates - 1),
        gate_epochs=1,
        random_widths=0,
        labels=1.0,
        target=target,
        base=Optimization(rate=effort.rate, decay=0.02),
        gates=Optimization(rate=_DSNET_GATE_RATE),
    )


def _dsnet_worth(effort: Effort, target: float) -> Recipe:
    """The same supernet; the gate learns what columns are worth, whatever the target."""
    return _dsnet(effort, target, "worth")


# Two columns: the fewer sub-networks share the weights, the better each is after so short a training. The
# cheap one lies a little below the target: most samples take it, and what is left pays for the rest.
# Seed 0 at 50 %, validation: 89.6 so, 89.3 with a cheap column at 27 % of the MACs; with `labels` 89.9.
_DSNET_RESNET = "dsnet(ratios=({}, 1.0), divisor=1, minimum=1, hidden=16, grid=4)"
_DSNET_VIT = "dsnet(ratios=({}, 1.0), depth=({}, 1.0), divisor=4, minimum=4, hidden=64, start=1)"
_DSNET = {
    "resnet": {0.3: _DSNET_RESNET.format(0.4), 0.5: _DSNET_RESNET.format(0.55)},
    "vit": {0.3: _DSNET_VIT.format(0.4, 0.4), 0.5: _DSNET_VIT.format(0.55, 0.75)},
}


def _lcnet(effort: Effort, target: float) -> Recipe:
    """From the trained source: gates alone, then all together, in as many epochs as other methods have.

    It learns from the source's outputs beside the labels, most of the time at the target.
    """
    return dc.recipes.lcnet(
        target=target,
        gate_epochs=1,
        joint_epochs=effort.base + effort.gates - 1,
        ramp=0.25,
        distillation=1.0,
        base=Optimization(rate=effort.rate / 2, decay=0.02),
    )


# Bits, not gains: gains shrink while the norms behind them make up for it, until small changes switch them
# (`lcnet-gains` shows what that costs).
def _lc(fields: str, targets: tuple[float, ...]) -> Method:
    """Layers and channels, or one of them; nothing is shared between targets."""
    specs = dict.fromkeys(EFFORTS, f"lcnet({fields})")
    return Method(specs, _lcnet, shared=0, base="lcnet", targets=targets, taught=True)


_LAYERS = dict.fromkeys(EFFORTS, "lcnet(channels=False, grid=2, bits=True)")


_ROUTING = {
    "resnet": "routing(candidates=('separable3', 'narrow'), top=1, grid=2)",
    "vit": "routing(candidates=('identity', 'narrow'), top=1)",
}


def _routing(effort: Effort, target: float) -> Recipe:
    """As many epochs as the other methods, half of them on the routes that are selected at the target."""
    total = effort.base + effort.gates
    hard = max(1, total // 2)
    return dc.recipes.routing(
        target=target,
        teaching="worth",
        branch_epochs=1,
        joint_epochs=max(1, total - hard - 2),
        router_epochs=1,
        hard_epochs=hard,
        base=Optimization(rate=effort.rate / 2, decay=0.02),
    )


_RESOLUTION = {"resnet": "resolution(sizes=(14, 20))"}  # the ViT adds positions of 28 pixels: refused


def _resolution(effort: Effort, target: float) -> Recipe:
    return dc.recipes.resolution(
        target=target,
        sizes=3,
        pretrain_epochs=effort.base,
        joint_epochs=effort.gates,
        base=Optimization(rate=effort.rate / 2, decay=0.02),
        gates=Optimization(rate=_GATE_RATE),
    )


_BASISNET = {
    "resnet": "basisnet(width=0.75, resolution=0.5)",
    "vit": "basisnet()",  # its preview sees 28 pixels, too
}


def _basisnet(effort: Effort, target: float) -> Recipe:
    """Both stages together from the trained source, no teacher: as static networks have none."""
    return dc.recipes.basisnet(
        epochs=effort.base + effort.gates,
        base=Optimization(rate=effort.rate / 2, decay=0.02),
        gates=Optimization(rate=_GATE_RATE),
    )


def _exits(effort: Effort, target: float) -> Recipe:
    return dc.recipes.exits(
        epochs=effort.base + effort.gates, base=Optimization(rate=effort.rate / 2, decay=0.02)
    )


def _with_heads(recipe: Recipe) -> Recipe:
    """Heads learn in every phase in which the network does."""
    return replace(recipe, phases=tuple(_teaching_heads(phase) for phase in recipe.phases))


def _teaching_heads(phase: Phase) -> Phase:
    if phase.trains == "gates":
        return phase
    turns = (
        replace(turn, terms={**turn.terms, "heads": EarlyLoss()}, execution="dense") for turn in phase.turns
    )
    return replace(phase, turns=tuple(turns))


def _lcnet_exits(effort: Effort, target: float) -> Recipe:
    """Skipping takes the root of the target, leaving early the rest of it."""
    return _with_heads(_lcnet(effort, target**0.5))


# Three columns and half of the rate: as in `_DSNET` and `_dsnet`, it was four points worse on validation.
_SLOW_DSNET = {
    "resnet": "dsnet(ratios=(0.4, 0.7, 1.0), divisor=1, minimum=1, hidden=64, grid=4)",
    "vit": "dsnet(ratios=(0.4, 0.7, 1.0), depth=(0.4, 0.75, 1.0), divisor=4, minimum=4, hidden=64, start=1)",
}


def _dsnet_exits(effort: Effort, target: float) -> Recipe:
    slow = dc.recipes.dsnet(
        sparsification="worth",
        supernet_epochs=effort.base,
        gate_epochs=effort.gates,
        random_widths=1,
        target=target**0.5,
        base=Optimization(rate=effort.rate / 2, decay=0.02),
        gates=Optimization(rate=_GATE_RATE),
    )
    return _with_heads(slow)


_PLACES = "exits(at=(0.4, 0.7), grid=4, hidden=64)"


def _early(specs: Mapping[str, str]) -> Mapping[str, Sequence[str]]:
    """Early exits behind what the specifications insert."""
    return {network: (spec, _PLACES) for network, spec in specs.items()}


METHODS: Mapping[str, Method] = {
    "dsnet": Method(_DSNET, _dsnet, shared=1, base="dsnet"),
    "dsnet-worth": Method(_DSNET, _dsnet_worth, shared=1, base="dsnet"),
    "lcnet": _lc("grid=2, bits=True", (0.7, 0.5, 0.3)),
    "lcnet-gains": _lc("grid=2", (0.5,)),
    "lcnet-layers": Method(_LAYERS, _lcnet, shared=0, base="lcnet-layers", targets=(0.5,), taught=True),
    "lcnet-channels": _lc("layers=False, grid=2, bits=True", (0.5,)),
    "routing": Method(_ROUTING, _routing, shared=3, base="routing"),
    "resolution": Method(_RESOLUTION, _resolution, shared=1, base="resolution"),
    "basisnet": Method(_BASISNET, _basisnet, shared=1, base="basisnet"),
    # Whoever leaves at the first place has spent 37 % on the ResNet: 30 % is out of reach.
    "exits": Method(dict.fromkeys(EFFORTS, _PLACES), _exits, shared=1, base="exits", targets=(0.7, 0.5)),
    "lcnet+exits": Method(
        _early(_LAYERS), _lcnet_exits, shared=0, base="lcnet+exits", targets=(0.5,), taught=True
    ),
    "dsnet+exits": Method(_early(_SLOW_DSNET), _dsnet_exits, shared=1, base="dsnet+exits", targets=(0.5,)),
}
