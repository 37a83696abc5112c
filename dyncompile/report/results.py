"""What a trained model does with labeled data: fixed settings, decision nets, these at other prices."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from dyncompile.policies import Forced, Full, Learned, Policy, Smallest
from dyncompile.program import SWITCHES, Domain
from dyncompile.report.columns import column_routes
from dyncompile.report.evaluation import Evaluation, evaluate_policy
from dyncompile.report.samples import Sample, class_names, extremes
from dyncompile.runtime.model import DynamicModel
from dyncompile.state import GATES
from dyncompile.train.columns import COLUMNS, column_shares

Watch = Callable[[str, int, int], object]
"""Told of (stage, done, total)."""
_PRICES = (-2.0, -0.5, 0.5, 2.0)
"""By how much the logit of the costliest column moves, for further points of the trade-off."""
_GENTLE = 8
"""Gains are their logits, in [0, 1]: their prices are so many times smaller."""
LEARNED = "learned"


@dataclass(frozen=True)
class Results:
    """Evaluations by name.

    Attributes:
        fixed: every sample alike, from the cheapest to the dearest.
        learned: by the decision nets; None where there are none.
        shifted: by the decision nets with a price of computation taken off their logits.
        easy, hard: the cheapest and the dearest samples.
        classes: names of the classes, if the data set says them.
    """

    fixed: Mapping[str, Evaluation]
    learned: Evaluation | None
    shifted: tuple[Evaluation, ...]
    easy: tuple[Sample, ...]
    hard: tuple[Sample, ...]
    classes: tuple[str, ...] = ()


def measure(dyn: DynamicModel, data: Any, watch: Watch = lambda stage, done, total: None) -> Results:
    """Run every policy that the page shows over `data`.

    Raises:
        InputError: data that is empty, cannot be read as batches, or has no labels.
    """
    fixed, prices = _policies(dyn), _prices(dyn)
    decides = bool(dyn.gated) or any(c.domain is Domain.EXIT for c in dyn.choices.values())
    total = len(fixed) + decides * (len(prices) + 2)
    done = iter(range(1, total + 1))

    def evaluated(policy: Policy) -> Evaluation:
        found = evaluate_policy(dyn, data, policy)
        watch("measuring", next(done), total)
        return found

    found = {name: evaluated(policy) for name, policy in fixed.items()}
    ordered = dict(sorted(found.items(), key=lambda entry: entry[1].macs))
    if not decides:
        return Results(ordered, None, (), (), ())
    learned, shifted = evaluated(Learned()), list[Evaluation]()
    for price in prices:
        with priced(dyn, price):
            shifted.append(evaluated(Learned()))
    easy, hard = extremes(dyn, data)
    watch("measuring", total, total)
    return Results(ordered, learned, tuple(shifted), tuple(easy), tuple(hard), class_names(data))


def _policies(dyn: DynamicModel) -> dict[str, Policy]:
    """The columns of one-hot choices, all together; where other choices are, or none, the two ends too."""
    policies: dict[str, Policy] = {name: Forced(route) for name, route in column_routes(dyn).items()}
    if policies and all(choice.domain is Domain.ONE_HOT for choice in dyn.choices.values()):
        return policies
    return {"cheapest": Smallest(), **policies, "full": Full()}


# -- prices -----------------------------------------------------------------------------------------


def _prices(dyn: DynamicModel) -> list[float]:
    return [] if not _priced_choices(dyn) else list(_PRICES)


def _priced_choices(dyn: DynamicModel) -> list[str]:
    """Choices whose decision net ends in a bias of its own."""
    known = dict(dyn.named_parameters())
    return [
        name
        for name in dyn.gated
        if dyn.choices[name].domain in (*COLUMNS, *SWITCHES) and f"{GATES}.{name}.head.bias" in known
    ]


@contextmanager
def priced(dyn: DynamicModel, price: float) -> Generator[None]:
    """Biases of decision nets less `price` times the cost of each column, the dearest one's being 1.

    The same shift as that of `dyncompile.train.calibrate`; afterwards they are what they were.
    """
    known = dict(dyn.named_parameters())
    names = _priced_choices(dyn)
    biases = {name: known[f"{GATES}.{name}.head.bias"] for name in names}
    before = {name: bias.detach().clone() for name, bias in biases.items()}
    shares = {name: column_shares(dyn, dyn.choices[name]) for name in names}
    unit = max((float(share.max()) for share in shares.values()), default=1.0) or 1.0
    gains = any(dyn.choices[name].domain is Domain.GAINS for name in names)
    try:
        with torch.no_grad():
            for name, bias in biases.items():
                bias -= (price / unit / (_GENTLE if gains else 1) * shares[name]).to(bias)
        yield
    finally:
        with torch.no_grad():
            for name, bias in biases.items():
                bias.copy_(before[name])
