"""One model through one contender: what is asked of each of them, in the same words."""

from __future__ import annotations

import copy
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dyncompile import zoo
from dyncompile.verify.compare import difference, plain

Call = Callable[..., Any]


@dataclass(frozen=True)
class Converted:
    """What a contender made of a model.

    Attributes:
        full: the network at full width; None where the contender has no such form (a pruner).
        smallest: the smallest network that its default choices allow.
        elastic: names of the source's parameters in which a choice of widths keeps a part.
        skippable: names of those that are not used where every block that can be dropped is dropped.
        blocks: how many blocks can be dropped.
        supernet: the same with nothing decided per sample; None where that is so already.
    """

    full: Call | None
    smallest: Call
    elastic: frozenset[str]
    skippable: frozenset[str]
    blocks: int
    supernet: Callable[[], Converted] | None = None


class Contender(Protocol):
    """A function that converts a model in place, with its defaults and nothing said about the model."""

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Converted:
        """The converted model; raises whatever the contender raises."""
        ...


@dataclass(frozen=True)
class Outcome:
    """A row of the table.

    Attributes:
        seconds: CPU seconds of the conversion, imports and a first conversion of a small network not counted.
        difference: largest absolute difference to the source's output at full width, at a batch size that
            was not shown; None without such a form.
        elastic, supernet, skippable: shares in [0, 1] of the source's parameters.
        blocks: blocks that can be dropped.
        smallest: "" if the smallest network gives finite outputs of the source's shapes, else what happens.
    """

    seconds: float
    difference: float | None
    elastic: float
    supernet: float
    skippable: float
    blocks: int
    smallest: str


def measure(name: str, convert: Contender) -> dict[str, Any]:
    """The outcome as data; an exception of the contender becomes ``{"error": ...}``."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.backends.mha.set_fastpath_enabled(False)
    source = zoo.load(name, batch=2)
    zoo.randomize(source.model, 0, inputs=(source.args, source.kwargs))
    try:
        return asdict(_outcome(source, convert))
    except Exception as error:  # another library runs here: anything may come out of it
        at = traceback.extract_tb(error.__traceback__)[-1]
        return {"error": f"{type(error).__name__}: {error} ({Path(at.filename).name}:{at.lineno})"[:300]}


def _outcome(source: zoo.Source, convert: Contender) -> Outcome:
    model, sizes = source.model, {name: p.numel() for name, p in source.model.named_parameters()}
    args, kwargs = other_rows(source.args), other_rows(source.kwargs)
    with torch.no_grad():
        expected = model(*args, **kwargs)
    own = copy.deepcopy(model)
    start = time.process_time()
    found = convert(own, source.args, source.kwargs)
    seconds = time.process_time() - start
    with torch.no_grad():
        apart = None if found.full is None else difference(expected, found.full(*args, **kwargs))
        smallest = _broken(expected, lambda: found.smallest(*args, **kwargs))
        supernet = found if found.supernet is None else found.supernet()
        if supernet is not found:
            assert supernet.full is not None
            assert difference(expected, supernet.full(*args, **kwargs)) == 0
            broken = _broken(expected, lambda: supernet.smallest(*args, **kwargs))
            assert not broken, f"the supernet: {broken}"
    return Outcome(
        seconds=round(seconds, 2),
        difference=apart,
        elastic=_share(sizes, found.elastic),
        supernet=_share(sizes, supernet.elastic),
        skippable=_share(sizes, found.skippable),
        blocks=found.blocks,
        smallest=smallest,
    )


def small() -> nn.Module:
    """A network for a first call, with a block that every contender can work on; takes [B, 3, H, W]."""
    layers = (nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), Residual(), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 10)).eval()


class Residual(nn.Module):
    """What `small` repeats nothing of."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm, self.conv2 = (
            nn.Conv2d(64, 64, 3, 1, 1),
            nn.BatchNorm2d(64),
            nn.Conv2d(64, 64, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, 64, H, W] to the same shape."""
        return x + self.conv2(self.norm(self.conv1(x)).relu())


def other_rows(value: Any, rows: int = 3) -> Any:
    """Inputs with another number of samples than the example's, floats moved a little."""
    torch.manual_seed(rows)

    def grow(one: Any) -> Any:
        if not isinstance(one, Tensor):
            return one
        more = torch.cat([one, one])[:rows].clone()
        return more + 0.1 * torch.randn_like(more) if more.is_floating_point() else more

    return pytree.tree_map(grow, value)


def _share(sizes: dict[str, int], names: Iterable[str]) -> float:
    return round(sum(sizes.get(name, 0) for name in names) / sum(sizes.values()), 4)


def _broken(expected: Any, run: Callable[[], Any]) -> str:
    try:
        actual = run()
    except Exception as error:  # the network that another library made
        return f"{type(error).__name__}: {error}"[:200]
    left, right = (
        [v for v in pytree.tree_leaves(plain(out)) if isinstance(v, Tensor)] for out in (expected, actual)
    )
    if [v.shape for v in left] != [v.shape for v in right]:
        return "outputs of other shapes"
    return "" if all(bool(v.isfinite().all()) for v in right) else "not finite"
